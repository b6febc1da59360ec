"""What a word can become: choices, folders by what they hold, the hub's cache."""

import json

import huggingface_hub.constants
import pytest

from vlm_runs import completion


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A user's folder: two runs, a model, a table, a folder of photos."""
    monkeypatch.chdir(tmp_path)
    files = (
        "runs/a/run.json",
        "runs/b/run.json",
        "here/run.json",
        "runs/c/other.txt",
        "scans/run.txt",
        "my run/run.json",
    )
    files += ("merged/config.json", "kept/merged/config.json", "runs/a/adapter/adapter_config.json", "shop.csv")
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(json.dumps({}))
    hub = tmp_path / ".hub"
    for name, file in (("Qwen--Qwen2-VL-2B", "config.json"), ("me--lora", "adapter_config.json"), ("me--empty", "x")):
        (hub / f"models--{name}" / "snapshots" / "0").mkdir(parents=True)
        (hub / f"models--{name}" / "snapshots" / "0" / file).touch()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(hub))
    return tmp_path


def test_runs_are_folders_with_a_record():
    assert completion.runs("") == [
        "here",
        "runs/a",
        "runs/b",
    ]  # what would have to be quoted is the shell's to complete
    assert completion.runs("runs/") == ["runs/a", "runs/b"]
    assert completion.runs("ru") == ["runs/a", "runs/b"]
    assert completion.runs("./runs/b") == ["./runs/b"]
    assert completion.runs("nowhere/") == completion.runs("sc") == []


def test_models_are_in_the_cache_and_in_folders(folder):
    assert completion.models("Q") == ["Qwen/Qwen2-VL-2B"] == completion.models("Qwen/Qwen2")
    assert completion.models("mer") == ["merged"] and completion.models("kept/") == ["kept/merged"]
    assert completion.models("me/") == [] and completion.models("sc") == []
    assert {"Qwen/Qwen2-VL-2B", "merged", "shop.csv", "runs"} <= set(completion.models(""))


def test_adapters_are_in_the_cache_and_in_folders():
    assert completion.adapters("me/") == ["me/lora"]
    assert completion.adapters("runs/a/") == ["runs/a/adapter"]


def test_data_have_names_or_are_files():
    assert completion.data("ea") == ["easy-vqa"]
    assert completion.data("s") == ["scenes", "scans", "shop.csv"]
    assert completion.data("sh") == []  # only files: the shell completes them
    assert {"easy-vqa", "scenes", "runs", "shop.csv"} <= set(completion.data(""))


def test_choices_one_or_several():
    assert completion.names("on", "off")("o") == ["on", "off"] and completion.names("on", "off")("of") == ["off"]
    several = completion.listed("lora", "rslora", "grit")
    assert several("") == ["lora", "rslora", "grit"] and several("lora,") == ["lora,rslora", "lora,grit"]
    assert several("rslora,lora,g") == ["rslora,lora,grit"] and several("x") == []
