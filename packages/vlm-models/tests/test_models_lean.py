"""Layers that keep less give what transformers' own give, forward and backward."""

import copy

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2MLP, Qwen2VLRMSNorm

import vlm_models
from vlm_models import lean

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def norm(dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    layer = Qwen2VLRMSNorm(64, eps=1e-5)
    nn.init.normal_(layer.weight)
    return layer.to(dtype)


def mlp(dtype: torch.dtype, activation: str = "silu") -> nn.Module:
    torch.manual_seed(0)
    return Qwen2MLP(LlamaConfig(hidden_size=64, intermediate_size=160, hidden_act=activation)).to(dtype)


def passes(layer: nn.Module, x: Tensor, upstream: Tensor) -> tuple[Tensor, list[Tensor], int]:
    """Output, gradients, and the bytes that are kept for the backward pass beside weights."""
    kept: dict[int, int] = {}
    weights = {weight.data_ptr() for weight in layer.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in weights:
            kept[tensor.data_ptr()] = tensor.nbytes
        return tensor

    x = x.clone().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = layer(x)
    return output, list(torch.autograd.grad(output, [x, *layer.parameters()], upstream)), sum(kept.values())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("make", [norm, mlp])
def test_outputs_are_the_same_numbers_and_gradients_those_of_autograd(make, dtype):
    theirs = make(dtype)
    ours = copy.deepcopy(theirs)
    lean.keep_less(ours)
    assert isinstance(ours, lean.RMSNorm | lean.GatedMLP)
    x, upstream = torch.randn(2, 3, 7, 64, dtype=dtype)
    expected, gradients, much = passes(theirs, x, upstream)
    found, own, less = passes(ours, x, upstream)
    assert torch.equal(found, expected) and less < 0.85 * much
    for one, other in zip(own, gradients, strict=True):
        assert one.dtype == other.dtype
        assert (one - other).abs().max() <= 4 * torch.finfo(dtype).eps * other.abs().max()


def test_gradients_in_float64_are_those_of_small_differences():
    torch.manual_seed(0)
    x, gate, up = torch.randn(3, 4, 6, dtype=torch.float64).unbind()
    for one in (x, gate, up):
        one.requires_grad_()
    layer = lean.RMSNorm(6).double()
    nn.init.normal_(layer.weight)
    assert torch.autograd.gradcheck(lambda x, w: lean._RMSNorm.apply(x, w, 1e-5), (x, layer.weight))
    assert torch.autograd.gradcheck(lean._Gated.apply, (gate, up))


def test_a_trained_norm_in_float32_beside_a_model_in_16_bits():
    theirs = norm(torch.float32)
    ours = copy.deepcopy(theirs)
    lean.keep_less(ours)
    x, upstream = torch.randn(2, 5, 64).bfloat16(), torch.randn(2, 5, 64)
    expected, gradients, _ = passes(theirs, x, upstream)
    found, own, _ = passes(ours, x, upstream)
    assert torch.equal(found, expected) and found.dtype == torch.float32
    assert [one.dtype for one in own] == [one.dtype for one in gradients]
    for one, other in zip(own, gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=0.02, atol=0.02)


def test_what_computes_otherwise_stays():
    others = nn.ModuleList([Gemma3RMSNorm(8), nn.RMSNorm(8), mlp(torch.float32, "gelu"), nn.LayerNorm(8)])
    before = [type(one) for one in others]
    lean.keep_less(others)
    assert [type(one) for one in others] == before
    kin = nn.ModuleList([LlamaRMSNorm(8), LlamaMLP(LlamaConfig(hidden_size=32, intermediate_size=8))])
    lean.keep_less(kin)
    assert [type(one) for one in kin] == [lean.RMSNorm, lean.GatedMLP]


def test_loaded_models_have_them():
    model = vlm_models.load("tiny-qwen2-vl", device="cpu").model
    layers = model.config.text_config.num_hidden_layers
    kinds = [type(module) for module in model.modules()]
    assert (kinds.count(lean.RMSNorm), kinds.count(lean.GatedMLP)) == (2 * layers + 1, layers)
