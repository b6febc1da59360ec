"""Where the model comes from: runs, adapters of ours and of Hugging Face PEFT, plain models."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

import peft_methods as pm
import vlm_models
from vlm_infer import InferError
from vlm_infer.model import ModelSpec, find_model


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    """A folder with an adapter for tiny-git that changes what it says, and the model that has it in its weights."""
    vlm = vlm_models.load("tiny-git", device="cpu")
    attachment = pm.attach(vlm.model, pm.LoRA(rank=2, targets=["query"]))
    torch.manual_seed(0)
    for parameter in attachment.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    folder = tmp_path_factory.mktemp("run") / "adapter"
    attachment.save(folder, base_model="tiny-git")
    _merged(attachment)
    return folder, vlm


def _merged(attachment: pm.Attachment) -> None:
    attachment.merge()
    attachment.detach(keep_merged=True)


def _same(one: vlm_models.VLM, other: vlm_models.VLM) -> bool:
    states = [{name: tensor for name, tensor in vlm.model.state_dict().items()} for vlm in (one, other)]
    return states[0].keys() == states[1].keys() and all(
        torch.equal(tensor, states[1][name]) for name, tensor in states[0].items()
    )


def test_a_run_an_adapter_and_its_base(adapter, tmp_path):
    folder, vlm = adapter
    config = {"model": "tiny-git", "quantization": "none", "dtype": "float32"}
    (folder.parent / "run.json").write_text(json.dumps({"config": config, "status": "done"}))
    assert find_model(run=folder.parent) == ModelSpec("tiny-git", folder, "none", "auto", "float32", None)
    assert find_model(run=folder.parent, dtype="bfloat16", device="cpu").dtype == "bfloat16"
    named = find_model(adapter=str(folder), model="tiny-git", device="cpu")
    assert named == find_model(adapter=str(folder), device="cpu")  # the adapter names its base itself
    assert _same(named.load(), vlm)
    plain = find_model(model="tiny-git", device="cpu")
    assert _same(plain.load(), vlm_models.load("tiny-git", device="cpu")) and not _same(plain.load(), vlm)
    assert plain.settings()["adapter"] is None and plain.settings() != named.settings()


def test_an_adapter_that_was_trained_again_is_another(adapter, tmp_path):
    folder, _ = adapter
    spec = find_model(adapter=str(folder))
    before = spec.settings()
    weights = folder / "adapter_model.safetensors"
    content = weights.read_bytes()
    try:
        weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert spec.settings() != before
    finally:
        weights.write_bytes(content)
    assert spec.settings() == before


def test_an_adapter_of_hugging_face_peft(tmp_path):
    peft = pytest.importorskip("peft")
    base = vlm_models.load("tiny-git", device="cpu")
    wrapped = peft.get_peft_model(
        base.model, peft.LoraConfig(r=2, target_modules=["query", "value"], init_lora_weights=False)
    )
    wrapped.save_pretrained(tmp_path / "theirs")
    wrapped.merge_adapter()
    pixels = {"input_ids": torch.tensor([[101, 7, 9]]), "pixel_values": torch.rand(1, 3, *_size(base))}
    expected = wrapped(**pixels).logits
    vlm = find_model(adapter=str(tmp_path / "theirs"), model="tiny-git", device="cpu").load()
    torch.testing.assert_close(vlm.model(**pixels).logits, expected, rtol=1e-4, atol=1e-4)


def test_an_adapter_on_the_vision_part_beside_the_first(adapter, tmp_path):
    folder, vlm = adapter
    shutil.copytree(folder, tmp_path / "adapter")
    spec = find_model(adapter=str(tmp_path / "adapter"), device="cpu")
    before = spec.settings()
    both = vlm_models.load("tiny-git", device="cpu")
    _merged(pm.load(both.model, folder))
    second = pm.attach(both.model, pm.LoRA(rank=2, targets=both.targets("vision")))
    for parameter in second.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    second.save(tmp_path / "adapter" / "vision")
    _merged(second)
    assert _same(spec.load(), both) and not _same(spec.load(), vlm) and spec.settings() != before


def test_images_are_as_large_as_in_training(tmp_path):
    config = {"model": "tiny-qwen2-vl", "quantization": "none", "dtype": "float32", "max_image_tokens": 20}
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    (tmp_path / "run.json").write_text(json.dumps({"config": config, "status": "done"}))
    assert find_model(run=tmp_path).max_image_tokens == 20
    assert find_model(run=tmp_path, max_image_tokens=30).max_image_tokens == 30
    picture = Image.new("RGB", (400, 400))
    for tokens in (4, 9):
        processor = find_model(model="tiny-qwen2-vl", device="cpu", max_image_tokens=tokens).load().processor
        grid = processor.image_processor(images=[picture], return_tensors="pt")["image_grid_thw"]
        assert int(grid.prod()) // processor.image_processor.merge_size**2 == tokens


def _size(vlm: vlm_models.VLM) -> tuple[int, int]:
    return (vlm.model.config.vision_config.image_size,) * 2


def test_an_adapter_of_the_hub_is_downloaded(adapter, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download", lambda name, **options: asked.append((name, options)) or str(adapter[0])
    )
    assert find_model(adapter="someone/adapter").adapter == adapter[0]
    assert asked == [("someone/adapter", {"allow_patterns": ["adapter_config.json", "adapter_model.safetensors"]})]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give a model: --run FOLDER, --adapter FOLDER --model BASE, or --model NAME"),
        ({"run": "run", "model": "tiny-git"}, "leave out --model"),
        ({"run": "run", "adapter": "a", "revision": "b"}, "leave out --adapter and --revision"),
        ({"run": "."}, "--run . is no run"),
        ({"adapter": "."}, "holds no adapter_config.json"),
        ({"adapter": "nowhere"}, "neither a folder nor a hub id"),
        ({"adapter": "baseless"}, "does not name its base model; give it with --model"),
    ],
)
def test_options_that_do_not_go_together(options, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "baseless").mkdir()
    (tmp_path / "baseless" / "adapter_config.json").write_text("{}")
    run = Path(options["run"]) if "run" in options else None
    with pytest.raises(InferError, match=message):
        find_model(**{**options, "run": run})


@pytest.mark.parametrize("content", ["{", "[]", '{"config": {}}'])
def test_a_run_json_of_something_else_is_told(tmp_path, content):
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(InferError, match="run.json is not one that vlm-train wrote"):
        find_model(run=tmp_path)


def test_a_run_without_an_adapter_is_told(tmp_path):
    config = {"model": "tiny-git", "quantization": "none", "dtype": "auto"}
    (tmp_path / "run.json").write_text(json.dumps({"config": config, "status": "running"}))
    with pytest.raises(InferError, match="has no adapter: its training is running"):
        find_model(run=tmp_path)


def test_an_adapter_stays_beside_weights_that_cannot_hold_it(adapter, monkeypatch):
    spec = find_model(adapter=str(adapter[0]), device="cpu")
    assert not pm.attachments(spec.load().model)
    monkeypatch.setattr("vlm_models.device.free_memory", lambda device: 1000)  # too little for a second copy
    assert len(pm.attachments(spec.load().model)) == 1
    monkeypatch.undo()
    pytest.importorskip("bitsandbytes")
    quantized = find_model(adapter=str(adapter[0]), quantization="nf4", device="cpu")
    assert len(pm.attachments(quantized.load().model)) == 1
