"""The options of vlm-export, and what it refuses."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from vlm_export import cli

HEAVY = {"torch", "transformers", "numpy", "PIL", "huggingface_hub", "vlm_models", "peft_methods"}
README = Path(__file__).parent.parent / "README.md"


def test_the_command_line_imports_nothing_heavy():
    code = "import sys, vlm_export.cli; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "vlm_export.cli" in loaded and not HEAVY & set(loaded)


def test_every_option_has_help_and_is_in_the_readme():
    command = typer.main.get_command(cli.app)
    assert all(parameter.help for parameter in command.params)
    text = README.read_text()
    assert [option for one in command.params for option in one.opts if f"`{option}" not in text] == []


def adapter(folder: Path, kind: str, **more) -> Path:
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": kind, **more}))
    return folder


BAD = {
    "nothing to export": ([], "give one of --run"),
    "two sources": (["--run", "run", "--from-peft", "lora"], "give one of --run"),
    "no run": (["--run", "nowhere"], "--run nowhere is no run"),
    "another run.json": (["--run", "strange"], "run.json is not one that vlm-train wrote"),
    "no json": (["--run", "damaged"], "run.json is not one that vlm-train wrote"),
    "no adapter": (["--run", "killed"], "--run killed has no adapter: its training is running"),
    "model of a run": (["--run", "run", "--model", "tiny-git"], "--model goes with --adapters or --from-peft"),
    "unknown form": (["--run", "run", "--to", "onnx"], "--to 'onnx' is unknown; known: model, peft, run"),
    "unknown dtype": (["--run", "run", "--dtype", "int4"], "--dtype 'int4' is unknown"),
    "dtype of an adapter": (["--run", "run", "--to", "peft", "--dtype", "float16"], "--dtype is of an exported model"),
    "check of a run": (["--run", "run", "--to", "run", "--check"], "--check is for --to model and --to peft"),
    "no size": (["--run", "run", "--shard-size", "5"], "--shard-size '5' is no size as 5GB or 500MB"),
    "private": (["--run", "run", "--private"], "--private goes with --push-to-hub"),
    "no weight": (["--adapters", "run"], "'run' is no folder=weight"),
    "a weight of letters": (["--adapters", "run=x"], "'run=x' is no folder=weight"),
    "twice": (["--adapters", "run=1,run=2"], "names a folder twice"),
    "different bases": (["--adapters", "run=1,other=1"], "of different base models, tiny-git and tiny-blip2"),
    "a sum with DoRA": (["--adapters", "run=1,dora=1", "--model", "tiny-git"], "dora does more than add to weights"),
    "no adapter folder": (["--from-peft", "empty"], "holds no adapter_config.json"),
    "no base": (["--from-peft", "lora"], "does not name its base model; give --model"),
    "bottleneck": (["--run", "bottleneck"], "nonlinearity, which no weight can hold; --to run exports"),
    "prefix": (["--from-peft", "prefix", "--model", "tiny-git"], "a prefix is keys and values"),
    "not empty": (["--run", "run", "--out", "run"], "--out run exists and is not empty"),
    "not a repository": (["--run", "run", "--push-to-hub", "mine"], "'mine' is no owner/name"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_done_is_one_line_and_leaves_nothing(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = {"model": "tiny-git", "quantization": "none", "dtype": "auto"}
    for run, kind, base in (("run", "LORA", "tiny-git"), ("other", "LORA", "tiny-blip2")):
        adapter(Path(run, "adapter"), kind)
        Path(run, "run.json").write_text(json.dumps({"config": {**config, "model": base}}))
    adapter(Path("bottleneck/adapter"), "peft_methods.Adapter")
    Path("bottleneck/run.json").write_text(json.dumps({"config": config}))
    for name, content in (("strange", "{}"), ("damaged", "{"), ("killed", '{"status": "running", "config": %s}')):
        Path(name).mkdir()
        Path(name, "run.json").write_text(content.replace("%s", json.dumps(config)))
    adapter(Path("lora"), "LORA")
    adapter(Path("dora"), "LORA", use_dora=True)
    adapter(Path("prefix"), "PREFIX_TUNING")
    Path("empty").mkdir()
    before = sorted(tmp_path.rglob("*"))
    arguments, message = BAD[case]
    if "--out" not in arguments:
        arguments = ["--out", "out", *arguments]
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == 2 and message in result.stderr, result.stderr
    assert len(result.stderr.splitlines()) == 1 and sorted(tmp_path.rglob("*")) == before
