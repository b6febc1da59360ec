"""Adapters on a model and off it: ours, and kinds that only Hugging Face PEFT has."""

import json
import sys

import pytest
import torch

import peft_methods as pm
from vlm_runs import RunError
from vlm_runs.adapters import adapter_folders, merge_for_good, needs_peft, put_on

PEFT = {  # a part of the model that each is put on
    "IA3": {"target_modules": ["first"], "feedforward_modules": []},
    "OFT": {"target_modules": ["first", "second"], "r": 2, "oft_block_size": 0},
    "ADALORA": {"target_modules": ["first"], "total_step": 10},
    "LOHA": {"target_modules": ["second"], "r": 2},
    "VERA": {"target_modules": ["first"], "r": 2},
}


def shaken(parameters) -> None:
    """What is trained gets other values."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))


@pytest.mark.parametrize("kind", PEFT)
def test_kinds_that_only_peft_has(kind, make_model, ids, tmp_path):
    peft = pytest.importorskip("peft")
    config = peft.PEFT_TYPE_TO_CONFIG_MAPPING[kind](**PEFT[kind])
    wrapped = peft.get_peft_model(make_model(), config).eval()
    shaken(parameter for parameter in wrapped.parameters() if parameter.requires_grad)
    wrapped.save_pretrained(tmp_path / "theirs")
    expected, plain = wrapped(ids), make_model()(ids)
    assert needs_peft(tmp_path / "theirs") and (expected - plain).abs().max() > 1e-2

    model = make_model()
    (adapter,) = put_on(model, tmp_path / "theirs")
    torch.testing.assert_close(model(ids), expected, rtol=0, atol=0)
    with adapter.disabled():
        torch.testing.assert_close(model(ids), plain, rtol=0, atol=0)
    adapter.save(tmp_path / "saved", base_model="words")
    assert json.loads((tmp_path / "saved" / "adapter_config.json").read_text())["base_model_name_or_path"] == "words"
    adapter.detach()
    torch.testing.assert_close(model(ids), plain, rtol=0, atol=0)

    (adapter,) = put_on(model, tmp_path / "saved")
    adapter.merge()
    adapter.detach(keep_merged=True)
    assert dict(model.named_parameters()).keys() == dict(make_model().named_parameters()).keys()
    torch.testing.assert_close(model(ids), expected, rtol=1e-4, atol=1e-5)


def test_ours_and_one_on_the_vision_part(make_model, ids, tmp_path):
    model, folder = make_model(), tmp_path / "adapter"
    first = pm.attach(model, pm.LoRA(rank=2, targets=["first"]))
    second = pm.attach(model, pm.LoRA(rank=2, targets=["second"]))
    shaken([*first.parameters(), *second.parameters()])
    first.save(folder)
    second.save(folder / "vision")
    assert adapter_folders(folder) == [folder, folder / "vision"] and not needs_peft(folder)
    again = make_model()
    adapters = put_on(again, folder)
    assert len(adapters) == 2 and torch.equal(again(ids), model(ids)) and not torch.equal(again(ids), make_model()(ids))
    for adapter in reversed(adapters):
        adapter.detach()
    assert torch.equal(again(ids), make_model()(ids))


@pytest.mark.parametrize("method", [pm.LoRA(rank=2, targets=["first"]), pm.Adapter(size=2, targets=["first"])])
def test_what_can_be_merged_is_and_the_rest_stays(method, make_model, ids, tmp_path):
    model = make_model()
    attachment = pm.attach(model, method)
    shaken(attachment.parameters())
    attachment.save(tmp_path)
    again = make_model()
    merge_for_good(put_on(again, tmp_path))
    assert len(pm.attachments(again)) == (0 if isinstance(method, pm.LoRA) else 1)
    torch.testing.assert_close(again(ids), model(ids), rtol=1e-4, atol=1e-5)


def test_where_the_second_fails_the_first_does_not_stay(make_model, ids, tmp_path):
    model = make_model()
    attachment = pm.attach(model, pm.LoRA(rank=2, targets=["first"]))
    shaken(attachment.parameters())
    attachment.save(tmp_path)
    attachment.save(tmp_path / "vision")
    (tmp_path / "vision" / "adapter_model.safetensors").write_bytes(b"cut off")
    again = make_model()
    with pytest.raises((pm.TargetError, pm.AdapterError)):
        put_on(again, tmp_path)
    assert pm.attachments(again) == [] and torch.equal(again(ids), make_model()(ids))


def test_what_peft_cannot_do_is_told(make_model, tmp_path, monkeypatch):
    peft = pytest.importorskip("peft")
    peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2).save_pretrained(tmp_path / "prompt")
    with pytest.raises(RunError, match="PROMPT_TUNING puts tokens before the text"):
        put_on(make_model(), tmp_path / "prompt")
    peft.IA3Config(target_modules=["first"], feedforward_modules=[]).save_pretrained(tmp_path / "empty")
    with pytest.raises(RunError, match="holds no adapter_model.safetensors"):
        put_on(make_model(), tmp_path / "empty")  # there are no weights
    lily = peft.get_peft_model(make_model(), peft.LilyConfig(target_modules=["first"], r=2))
    lily.save_pretrained(tmp_path / "lily")
    (adapter,) = put_on(make_model(), tmp_path / "lily")
    with pytest.raises(RunError, match="PEFT cannot put it into the weights"):
        adapter.merge()
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(RunError, match="LILY of Hugging Face PEFT: pip install 'vlm-runs"):
        put_on(make_model(), tmp_path / "lily")
