"""Several adapters on one base, options, and examples."""

import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner

import peft_methods as pm
import vlm_data
import vlm_models
from vlm_demo import cli
from vlm_demo.models import Settings, load_all
from vlm_demo.sources import Source, read_examples, read_sources, row_of

HEAVY = {"torch", "transformers", "numpy", "PIL", "gradio", "vlm_models", "peft_methods"}
QUESTION = "what color is the circle?"


def test_the_command_line_imports_nothing_heavy():
    code = "import sys, vlm_demo.cli; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "vlm_demo.cli" in loaded and not HEAVY & set(loaded)


def test_every_option_has_help_and_is_in_the_readme():
    command = typer.main.get_command(cli.app)
    assert all(parameter.help for parameter in command.params)
    text = (Path(__file__).parent.parent / "README.md").read_text()
    assert [option for one in command.params for option in one.opts if f"`{option}" not in text] == []


BAD = {
    "nothing": ([], "give a trained run"),
    "no run": (["--run", "nowhere"], "--run nowhere is no run"),
    "another run.json": (["--run", "strange"], "run.json is not one that vlm-train wrote"),
    "no adapter": (["--run", "killed"], "--run killed has no adapter: its training is running"),
    "twice": (["--model", "tiny-git", "--model", "tiny-blip2", "--model", "tiny-blip2"], "tiny-blip2 is given twice"),
    "no such host": (["--model", "tiny-git", "--host", "999.0.0.1"], "--host 999.0.0.1: cannot listen there"),
    "no such port": (["--model", "tiny-git", "--port", "70000"], "--port 70000: cannot listen there"),
    "unknown model": (["--model", "tiny-gti"], "did you mean tiny-git"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_shown_is_one_line(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = {"model": "tiny-git", "quantization": "none", "dtype": "auto"}
    for name, record in (("strange", {}), ("killed", {"status": "running", "config": config})):
        Path(name).mkdir()
        Path(name, "run.json").write_text(json.dumps(record))
    arguments, message = BAD[case]
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == 2 and message in result.stderr and len(result.stderr.splitlines()) == 1


def test_a_taken_port_is_told_before_anything_is_loaded():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = CliRunner().invoke(cli.app, ["--model", "tiny-git", "--port", str(port)])
    assert result.exit_code == 2 and "in use); choose another" in result.stderr and "loading" not in result.stdout


def alone(run: Path, picture: Path) -> str:
    """What a run answers on a base of its own."""
    vlm = vlm_models.load("tiny-git", device="cpu")
    pm.load(vlm.model, run / "adapter")
    collate = vlm_data.collator(vlm.processor, vlm.family, vlm.max_length)
    return vlm.generate(collate.prompts([row_of(str(picture), QUESTION)]), 48)[0].text


def test_each_answers_as_if_it_were_alone(near, far, make_run, picture):
    dora = make_run("dora", pm.LoRA(rank=2, dora=True, targets=["query"]))
    loaded = load_all(read_sources([near, far, dora], ["tiny-git"]), "cpu")
    assert [one.name for one in loaded] == ["near", "far", "dora", "tiny-git (base)"]
    assert loaded[0].vlm is loaded[1].vlm is loaded[3].vlm and loaded[2].vlm is not loaded[0].vlm  # DoRA comes first
    assert pm.attachments(loaded[0].vlm.model) == [*loaded[0].adapters, *loaded[1].adapters]
    said = {one.name: one.answer(str(picture), QUESTION, Settings()) for one in loaded}
    assert said["far"].text == alone(far, picture) != said["near"].text == alone(near, picture)
    assert said["dora"].text == alone(dora, picture) and said["tiny-git (base)"].text == "green"
    assert said["near"].looks.size[0] > 96 and not said["near"].note


def test_a_kind_of_adapter_that_only_peft_has_gets_a_base_of_its_own(near, make_run, picture):
    peft = pytest.importorskip("peft")
    run = make_run("theirs", pm.LoRA(rank=2, targets=["query"]))
    shutil.rmtree(run / "adapter")
    vlm = vlm_models.load("tiny-git", device="cpu")
    config = peft.IA3Config(target_modules=["query", "value"], feedforward_modules=[])
    wrapped = peft.get_peft_model(vlm.model, config)
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.uniform_(-1, 1, generator=torch.Generator().manual_seed(0))
    wrapped.save_pretrained(run / "adapter")
    wrapped.merge_and_unload()
    loaded = load_all(read_sources([near, run], ["tiny-git"]), "cpu")
    assert loaded[0].vlm is loaded[2].vlm is not loaded[1].vlm
    said = [one.answer(str(picture), QUESTION, Settings(attention=False)).text for one in loaded]
    collate = vlm_data.collator(vlm.processor, vlm.family, vlm.max_length)
    expected = vlm.eval().generate(collate.prompts([row_of(str(picture), QUESTION)]), 48)[0].text
    assert said == [alone(near, picture), expected, "green"] and expected != "green"


def test_models_without_a_known_grid_answer_all_the_same(near, picture, monkeypatch):
    (loaded,) = load_all(read_sources([near], []), "cpu")

    def no_grid(*_):
        raise vlm_models.ModelError("no grid")

    monkeypatch.setattr(vlm_models, "attention_maps", no_grid)
    said = loaded.answer(str(picture), QUESTION, Settings())
    assert said.text and said.looks is None and said.note == "no grid"


def test_two_adapters_of_a_run(make_run, picture, tmp_path):
    run = make_run("both", pm.LoRA(rank=2, targets=["query"]))
    vlm = vlm_models.load("tiny-git", device="cpu")
    pm.attach(vlm.model, pm.LoRA(rank=2, targets=vlm.targets("vision"))).save(run / "adapter" / "vision")
    (loaded,) = load_all(read_sources([run], []), "cpu")
    assert len(loaded.adapters) == 2 and loaded.answer(str(picture), "", Settings(attention=False)).looks is None


def test_examples_are_pictures_that_are_there(near, far, picture):
    assert read_examples([near, far]) == [(str(picture), QUESTION)]
    assert read_examples([near.parent]) == []


def test_pictures_are_seen_at_the_size_of_training(near, tmp_path):
    run = shutil.copytree(near, tmp_path / "run")
    record = json.loads((run / "run.json").read_text())
    record["config"] |= {"max_image_tokens": 9, "model": "tiny-qwen2-vl"}
    (run / "run.json").write_text(json.dumps(record))
    shutil.rmtree(run / "adapter")
    pm.attach(vlm_models.load("tiny-qwen2-vl").model, pm.LoRA(rank=2, targets=["q_proj"])).save(run / "adapter")
    (loaded,) = load_all(read_sources([run], []), "cpu")
    of_images = loaded.vlm.processor.image_processor
    assert of_images.size["longest_edge"] == 9 * (of_images.patch_size * of_images.merge_size) ** 2


def test_a_plain_model_has_its_own_name():
    assert read_sources([], ["tiny-git"]) == [Source("tiny-git", "tiny-git")]
