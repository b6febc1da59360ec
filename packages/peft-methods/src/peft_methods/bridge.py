"""What is known of layers that are not torch's own, found in `sys.modules` so that nothing is imported for it.

A layer of transformers or bitsandbytes can only be in a model whose library has been imported already.
"""

import sys
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from .tree import Wrapper


@dataclass(frozen=True)
class Layout:
    """Sizes of a linear-like module: ``weight`` is [out, in], or [in, out] when `transposed`.

    `plain`: its forward is exactly ``x Wᵀ + b`` with ordinary tensors, by torch or by a function of its own, `multiply`
    (x, W, b) without a gradient. `quantized`: its weight cannot be added to.
    """

    in_features: int
    out_features: int
    transposed: bool = False
    plain: bool = False
    quantized: bool = False


def layout(module: nn.Module) -> Layout | None:
    """The layout of a linear-like module, or None for every other module.

    The output projection of `nn.MultiheadAttention` is not one: its weight is read, its forward is never called.
    """
    if isinstance(module, Wrapper):
        base = layout(module.base)
        return base and replace(base, plain=False)
    conv1d = getattr(sys.modules.get("transformers.pytorch_utils"), "Conv1D", None)
    if conv1d is not None and isinstance(module, conv1d):
        return Layout(*module.weight.shape, transposed=True, plain=_runs(module, conv1d.forward))
    if not isinstance(module, nn.Linear) or isinstance(module, NonDynamicallyQuantizableLinear | nn.LazyLinear):
        return None
    weight = module.weight
    # Sub-byte, 8-bit and tensor-subclass weights (bitsandbytes, float8, torchao) come with a forward of their own.
    quantized = type(weight) is not nn.Parameter or weight.dtype.itemsize == 1
    plain = not quantized and _runs(module, nn.Linear.forward)
    return Layout(module.in_features, module.out_features, plain=plain, quantized=quantized)


def parameter_count(parameter: nn.Parameter) -> int:
    """Number of elements; bitsandbytes packs two 4-bit ones into a byte and keeps the real shape in `quant_state`."""
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else torch.Size(state.shape).numel()


def keep_differentiable(model: nn.Module) -> None:
    """Have 4-bit layers of bitsandbytes in the form that gradients pass.

    On CPUs with bfloat16 instructions it packs their weights anew at a forward pass in evaluation mode, for good, with
    rounded scales, and no gradient passes such a layer afterwards.
    """
    for module in model.modules():
        if "support_avx512bf16_for_cpu" in vars(module):
            module.support_avx512bf16_for_cpu = False
            if getattr(module.weight.quant_state, "packing_format_for_cpu", False):
                module.state_dict()  # unpacks the weight in place


def _runs(module: nn.Module, forward) -> bool:
    # An instance attribute `forward` is a hook of accelerate that brings the weight in from elsewhere.
    return (type(module).forward is forward or hasattr(module, "multiply")) and "forward" not in vars(module)
