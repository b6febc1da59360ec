"""Predicted memory against what torch allocates, and the choice of quantization that follows from it."""

import sys

import pytest
import torch
from transformers import AutoConfig

import vlm_models
from vlm_models.memory import ADAMW
from vlm_models.tiny import tiny_folder

GB = 2**30


@pytest.fixture(params=vlm_models.TINY)
def name(request) -> str:
    return request.param


def outline(name: str) -> vlm_models.VLM:
    return vlm_models.skeleton(AutoConfig.from_pretrained(tiny_folder(name)), name)


def bytes_of(module: torch.nn.Module) -> int:
    """Of the parameters, and of the scales that bitsandbytes keeps beside them; what is shared counts once."""
    total = 0
    for parameter in module.parameters():
        total += parameter.nbytes
        state = getattr(parameter, "quant_state", None)
        if state is not None:
            scales = [state.absmax, state.state2.absmax] if state.nested else [state.absmax]
            total += sum(one.nbytes for one in scales)
        elif getattr(parameter, "SCB", None) is not None:
            total += parameter.SCB.nbytes
    return total


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_are_the_bytes_of_the_parameters(name, dtype):
    vlm = vlm_models.load(name, device="cpu", dtype=dtype)
    predicted = vlm_models.predict_memory(outline(name), dtype=vlm.model.dtype)
    assert predicted.weights == bytes_of(vlm)
    assert predicted == vlm_models.predict_memory(vlm)


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_quantized_weights_are_those_of_bitsandbytes(name, quantization):
    vlm = vlm_models.load(name, quantization, device="cpu")
    predicted = vlm_models.predict_memory(outline(name), quantization, dtype=torch.float32)
    assert predicted.weights == pytest.approx(bytes_of(vlm), rel=0.01)


def test_activations_are_about_what_autograd_keeps(name):
    """Counted by a hook on saved tensors, with LoRA's place taken by an input that needs a gradient."""
    vlm = vlm_models.load(name, device="cpu").requires_grad_(False).train()
    rows, length = 4, 32
    ids = torch.full((rows, length), 20)
    mask = torch.ones_like(ids)
    dim = vlm.head.in_features
    batch = {"input_ids": ids, "attention_mask": mask, "image_index": torch.zeros(rows, dtype=torch.long)}
    batch["position_ids"] = torch.arange(length).expand(*((3,) if vlm.family == "chat" else ()), rows, length)
    images = 16 if vlm.family in ("git", "encoder_decoder") else 4
    if vlm.family in ("blip2", "chat"):
        ids[:, :images] = vlm.model.config.image_token_id
    weights = {parameter.data_ptr() for parameter in vlm.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in weights:
            kept[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        vlm.hidden_states([torch.randn(images, dim, requires_grad=True)], batch)
    tokens = rows * (length + (images if vlm.family == "git" else 0))
    predicted = vlm_models.predict_memory(vlm, tokens=tokens).activations
    assert sum(kept.values()) / 2 < predicted < sum(kept.values()) * 3


def test_optimizer_is_what_adamw_allocates():
    layer = torch.nn.Linear(100, 30, bias=False)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.randn(2, 100)).sum().backward()
    optimizer.step()
    state = [one for one in optimizer.state[layer.weight].values() if one.ndim]
    assert layer.weight.nbytes + layer.weight.grad.nbytes + sum(one.nbytes for one in state) == ADAMW * 3000
    assert vlm_models.predict_memory(outline("tiny-git"), trained=3000).optimizer == ADAMW * 3000


def test_the_parts_add_up_and_are_written():
    memory = vlm_models.Memory(4 * GB, 3 * GB, 2 * GB, GB // 2)
    assert memory.total == 9 * GB + GB // 2
    assert str(memory) == "9.5 GiB (weights 4.0, activations 3.0, optimizer 2.0, head 0.5)"


@pytest.mark.parametrize("free", [-1, 0])
def test_nf4_is_chosen_on_a_gpu_where_the_model_does_not_fit_and_nowhere_else(monkeypatch, free):
    needed = vlm_models.predict_memory(outline("tiny-git"), dtype=torch.float32).total
    monkeypatch.setattr(sys.modules["vlm_models.load"], "free_memory", lambda device: needed + free)
    chosen = vlm_models.plan("tiny-git", "auto", device="cpu")
    assert chosen.quantization == ("none" if free == 0 else "nf4")
    assert "GiB needed unquantized" in chosen.reason and "\n" not in str(chosen)
    vlm = vlm_models.load("tiny-git", "auto", device="cpu")
    kind = "Linear" if free == 0 else "Linear4bit"
    assert {type(vlm.model.get_submodule(target)).__name__ for target in vlm.targets()} == {kind}


def test_auto_on_a_cpu_is_not_quantized_and_says_why():
    chosen = vlm_models.plan("tiny-git", "auto", device="cpu")
    assert str(chosen) == (
        "tiny-git on cpu in float32 (not quantized: 4 bits would be slow there); "
        f"predicted memory: {vlm_models.predict_memory(vlm_models.load('tiny-git', device='cpu'))}"
    )
    assert "tiny-git on cpu in nf4 beside float32; predicted" in str(vlm_models.plan("tiny-git", "nf4", device="cpu"))


def test_a_cpu_that_is_out_of_memory_is_known_as_accelerators_are():
    with pytest.raises(torch.OutOfMemoryError), vlm_models.out_of_memory_known():
        torch.empty(2**60, dtype=torch.uint8)
    with pytest.raises(RuntimeError) as other, vlm_models.out_of_memory_known():
        torch.zeros(2) @ torch.zeros(3)
    assert not isinstance(other.value, torch.OutOfMemoryError)
