"""Linear layers on a CPU, by the faster of the two libraries that torch brings for it.

torch multiplies float32 matrices by MKL, which uses AVX-512 on Intel's processors alone; oneDNN, which torch takes for
16 bits and in compiled models, uses it wherever it is. On AMD's that is twice as fast. Both round as float32 does, each
in its own order of summation. With `ATEN_CPU_CAPABILITY=avx2` in the environment it is MKL alone.
"""

import platform
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.pytorch_utils import Conv1D

SMALLEST = 2**25  # multiplications of a product from which oneDNN is taken
_SYSTEM_LIST = Path("/proc/cpuinfo")  # Linux's; elsewhere Python knows who made the processor
_PROCESSOR = _SYSTEM_LIST.read_text() if _SYSTEM_LIST.exists() else platform.processor()
_ONEDNN_IS_FASTER = (
    torch.backends.mkldnn.is_available()
    and torch.backends.cpu.get_cpu_capability() == "AVX512"
    and "GenuineIntel" not in _PROCESSOR
)


def speed_up(model: nn.Module) -> None:
    """Let linear layers, torch's and GPT-2's, multiply by oneDNN where it is worth it. All else about them stays."""
    for module in model.modules():
        module.__class__ = {nn.Linear: Linear, Conv1D: TransposedLinear}.get(type(module), type(module))


def multiply(x: Tensor, W: Tensor, b: Tensor | None = None) -> Tensor:
    """``x Wᵀ + b``: x [..., in], W [out, in] or the transpose of an [in, out], b [out] -> [..., out]. Not for autograd.

    The rows of x are filled up to a rounded number of them: oneDNN makes, and keeps, a kernel for each number, in
    0.4 ms and up to 0.4 MB.
    """
    if not _by_onednn(x, W):
        return F.linear(x, W, b)
    y = torch.ops.mkldnn._linear_pointwise(_filled_up(x), W, b, "none", [], "")
    return y.resize_(*x.shape[:-1], W.shape[0])  # the owner of its memory and no view: it may be changed in place


class Linear(nn.Linear):
    """`nn.Linear`, faster. `multiply` is for adapters that make the layer's product themselves, as peft-methods' do."""

    multiply = staticmethod(multiply)

    def forward(self, x: Tensor) -> Tensor:
        return _linear(x, self.weight, self.bias)


class TransposedLinear(Conv1D):
    """transformers' `Conv1D`, faster."""

    multiply = staticmethod(multiply)

    def forward(self, x: Tensor) -> Tensor:
        return _linear(x, self.weight.t(), self.bias)


def _linear(x: Tensor, W: Tensor, b: Tensor | None) -> Tensor:
    return _Linear.apply(x, W, b) if _by_onednn(x, W) else F.linear(x, W, b)


class _Linear(torch.autograd.Function):
    """`multiply`, differentiable once."""

    @staticmethod
    def forward(ctx, x, W, b):
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, W)
        return multiply(x, W, b)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        x, W = ctx.saved_tensors
        need_x, need_W, need_b = ctx.needs_input_grad
        dx = multiply(dy, W.t()) if need_x else None
        dW = multiply(_filled_up(dy).t(), _filled_up(x).t()) if need_W else None
        return dx, dW, dy.reshape(-1, dy.shape[-1]).sum(0) if need_b else None


def _by_onednn(x: Tensor, W: Tensor) -> bool:
    return (
        _ONEDNN_IS_FASTER
        and x.dtype == W.dtype == torch.float32
        and x.device.type == W.device.type == "cpu"
        and x.numel() * W.shape[0] >= SMALLEST
        and (W.is_contiguous() or W.t().is_contiguous())  # of other strides it copies number by number
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


def _filled_up(x: Tensor) -> Tensor:
    """The rows of x [..., in] and rows of zeros: [rows, in]; eight numbers of rows from a power of 2 to the next."""
    rows = x.reshape(-1, x.shape[-1]).contiguous()
    missing = -len(rows) % max(16, 2 ** (len(rows).bit_length() - 4))
    return torch.cat([rows, rows.new_zeros(missing, rows.shape[1])]) if missing else rows
