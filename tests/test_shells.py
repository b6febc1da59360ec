"""The shell completes every command's options, and neither that nor --help waits for anything heavy."""

import importlib
import json
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from typer.testing import CliRunner

import vlm_data
import vlm_data.generate
import vlm_data.opening
import vlm_eval
import vlm_models
import vlm_train.cli
from vlm_runs import completion
from vlm_train.options.config import TrainConfig

APPS = sorted(path.parent.name for path in Path(__file__).parent.parent.glob("apps/*/pyproject.toml"))


def offered(app: str, line: str, shell: str = "bash") -> list[str]:
    """What the script that --install-completion installs is told, by Typer's protocol, at the end of the line."""
    words = line.split(" ")
    variables = {
        "bash": {"COMP_WORDS": "\n".join(words), "COMP_CWORD": str(len(words) - 1)},
        "zsh": {"_TYPER_COMPLETE_ARGS": line},
        "fish": {"_TYPER_COMPLETE_ARGS": line, "_TYPER_COMPLETE_FISH_ACTION": "get-args"},
    }
    variables = {**variables[shell], f"_{app.upper().replace('-', '_')}_COMPLETE": f"complete_{shell}"}
    command = importlib.import_module(f"{app.replace('-', '_')}.cli").app
    return CliRunner().invoke(command, [], env=variables, prog_name=app).output.split()


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("runs/one", "runs/two"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "run.json").write_text("{}")


CASES = {
    "vlm-train --model tiny-g": ["tiny-git"],
    "vlm-train --data ea": ["easy-vqa"],
    "vlm-train --method l": ["lora"],
    "vlm-train --vision-method h": ["houlsby"],
    "vlm-train --model tiny-git --schedule co": ["cosine", "constant"],
    "vlm-train --resume runs/o": ["runs/one"],
    "vlm-compare --methods lora,gr": ["lora,grit"],
    "vlm-compare --model tiny-b": ["tiny-blip2"],
    "vlm-compare --forgetting sc": ["scenes"],
    "vlm-infer --run r": ["runs/one", "runs/two"],
    "vlm-infer --model tiny-v": ["tiny-vit-gpt2"],
    "vlm-infer --data e": ["easy-vqa"],
    "vlm-infer --engine r": ["ray"],
    "vlm-infer --images ru": [],  # a folder: the shell completes it
    "vlm-score r": ["runs/one", "runs/two"],
    "vlm-score p.csv --metrics bleu,ci": ["bleu,cider"],
    "vlm-score p.csv --against runs/t": ["runs/two"],
    "vlm-export --run runs/": ["runs/one", "runs/two"],
    "vlm-export --to p": ["peft"],
    "vlm-demo --run runs/one --run runs/t": ["runs/two"],
    "vlm-demo --model tiny-q": ["tiny-qwen2-vl"],
    "vlm-questions --kinds color,c": ["color,count"],
}


@pytest.mark.parametrize("line", CASES)
def test_the_shell_is_offered_what_the_word_can_become(line, runs):
    app = line.split()[0]
    assert offered(app, line) == offered(app, line, "fish") == CASES[line]
    zsh = " ".join(offered(app, line, "zsh"))
    words = " ".join(f'"{word}"' for word in CASES[line])
    assert zsh == (f"_arguments '*: :(({words}))'" if words else "_files")


def test_the_shell_is_offered_options():
    assert offered("vlm-train", "vlm-train --quant") == ["--quantization"]
    assert "--max-new-tokens" in offered("vlm-infer", "vlm-infer --")


@pytest.mark.parametrize(
    ("shell", "script"), [("bash", "complete -o default"), ("zsh", "compdef"), ("fish", "complete")]
)
@pytest.mark.parametrize("app", APPS)
def test_there_is_a_script_for_each_shell(app, shell, script):
    command = importlib.import_module(f"{app.replace('-', '_')}.cli").app
    variable = f"_{app.upper().replace('-', '_')}_COMPLETE"
    printed = CliRunner().invoke(command, [], env={variable: f"source_{shell}"}, prog_name=app).output
    assert script in printed and variable in printed and app in printed


def test_installing_writes_into_the_home_of_the_user(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("typer._completion_shared._get_shell_name", lambda: "bash")
    said = CliRunner().invoke(vlm_train.cli.app, ["--install-completion"], prog_name="vlm-train")
    assert said.exit_code == 0 and "bash completion installed" in said.output
    assert ".bash_completions/vlm-train.sh" in (tmp_path / ".bashrc").read_text()
    assert "_VLM_TRAIN_COMPLETE=complete_bash" in (tmp_path / ".bash_completions/vlm-train.sh").read_text()


def test_the_names_offered_are_those_that_are_taken():
    assert completion.formats("") == ["auto", *vlm_data.opening.READERS]
    assert {*vlm_data.opening.SOURCES} <= {*completion.data("")}
    assert {*vlm_models.TINY} <= {*completion.models("")}
    assert completion.quantizations("") == list(vlm_models.QUANTIZATIONS)
    assert set(completion.dtypes("")) == {"auto", *vlm_models.DTYPES}
    assert offered("vlm-questions", "vlm-questions --kinds ") == list(vlm_data.generate.KINDS)
    assert {*vlm_train.cli.COMPLETIONS} <= {field.name for field in fields(TrainConfig)}
    metrics = {*offered("vlm-train", "vlm-train --metric ")} - {"loss"}
    assert metrics and all(hasattr(vlm_eval, name) for name in metrics)


HEAVY = ("torch", "transformers", "gradio", "datasets", "accelerate", "peft", "matplotlib", "pandas", "numpy", "PIL")
PROGRAM = """
import contextlib, importlib, io, json, os, sys
from typer.testing import CliRunner
loaded = {}
for app in sys.argv[2:]:
    command = importlib.import_module(app.replace("-", "_") + ".cli").app
    assert CliRunner().invoke(command, ["--help"], prog_name=app).exit_code == 0
    option = "--data " if app == "vlm-questions" else "" if app == "vlm-score" else "--model "
    line = f"{app} {option}".strip().split() + [""]
    words = {"COMP_WORDS": "\\n".join(line), "COMP_CWORD": str(len(line) - 1)}
    variable = "_" + app.upper().replace("-", "_") + "_COMPLETE"
    CliRunner().invoke(command, [], env={**words, variable: "complete_bash"}, prog_name=app)
    loaded[app] = [name for name in json.loads(sys.argv[1]) if name in sys.modules]
print(json.dumps(loaded))
"""


def test_help_and_completion_import_nothing_heavy():
    line = [sys.executable, "-c", PROGRAM, json.dumps(HEAVY), *APPS]
    said = subprocess.run(line, capture_output=True, text=True, check=True).stdout
    assert json.loads(said) == {app: [] for app in APPS}
