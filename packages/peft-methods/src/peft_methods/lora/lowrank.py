"""The low-rank product beside a frozen linear layer, with a lean backward:

    h = dropout(x) Aᵀ        y = x Wᵀ + b + s · h Bᵀ

Kept for backward are x (the caller's tensor, never a copy), h (rank wide) and references to the weights. Everything is
computed in the dtype in which the base layer answers, so float32 A and B beside a bfloat16 W cost a cast of A and B,
not of x. Dropout keeps a seed instead of a mask, and its 1 / (1 - p) goes into the scale s.

Shapes: x [..., in], W [out, in], b [out], A [rank, in], B [out, rank], h [rows, rank], y [..., out].
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def new_seed() -> Tensor:
    """A dropout seed drawn from torch's CPU generator: a tensor, so that gradient checkpointing recomputes it too."""
    return torch.randint(2**63 - 1, (), device="cpu")


def lora_linear(
    x: Tensor,
    W: Tensor,
    b: Tensor | None,
    A: Tensor,
    B: Tensor,
    scale: float,
    dropout: float = 0.0,
    seed=None,
    probe=None,
    multiply: Callable[..., Tensor] = F.linear,
) -> Tensor:
    """``x Wᵀ + b + scale · dropout(x) Aᵀ Bᵀ``; a `seed` switches dropout on. Differentiable once, in x, W, b, A, B.

    In the backward pass `probe(h, dh, s, kept)` is called, if given: ``s · h`` is scale · dropout(x) Aᵀ, and
    ``kept · dh`` the loss's gradient with respect to dropout(x) Aᵀ, both [rows, rank].

    `multiply` (x, W, b) makes the products with W: it returns a new tensor, and needs no gradient.
    """
    if torch.is_grad_enabled():
        return _LoRALinear.apply(x, W, b, A, B, scale, dropout, seed, probe, multiply)
    return _add_low_rank(multiply(x, W, b), x, A, B, scale, dropout, seed)


def add_low_rank(
    y: Tensor, x: Tensor, A: Tensor, B: Tensor, scale: float, dropout: float = 0.0, seed=None, probe=None
) -> Tensor:
    """``y + scale · dropout(x) Aᵀ Bᵀ`` where y comes from a layer with a forward of its own. Otherwise the same."""
    if torch.is_grad_enabled():
        return _AddLowRank.apply(y, x, A, B, scale, dropout, seed, probe)
    return _add_low_rank(y.clone(memory_format=torch.contiguous_format), x, A, B, scale, dropout, seed)


def _add_low_rank(y, x, A, B, scale, dropout, seed):
    """Add to y in place, for inference."""
    if A.dtype != y.dtype and x.numel() < A.numel():  # decoding: a few rows of x are cheaper to cast than A and B
        h = _project(_rows(x).to(A.dtype), A, dropout, seed)
        return y.add_(F.linear(h, B).view(y.shape), alpha=_kept_scale(scale, dropout, seed))
    _add_product_of(x, A, B, scale, dropout, seed, into=y)
    return y


def _add_product_of(x, A, B, scale, dropout, seed, into):
    y, x = into.view(-1, into.shape[-1]), _rows(x)
    h = _project(x if x.dtype == y.dtype else x.to(y.dtype), A, dropout, seed)
    y.addmm_(h, B.to(y.dtype).t(), alpha=_kept_scale(scale, dropout, seed))
    return h


def _rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])


def _project(x: Tensor, A: Tensor, dropout: float, seed: Tensor | None) -> Tensor:
    if seed is not None:
        x = _keep_mask(x, dropout, seed).mul_(x)
    return F.linear(x, A.to(x.dtype))


# Dropout compares 16 random bits per element with a threshold: exact for the probability `_dropped(p) / 65536`, and
# several times cheaper on a CPU than a Bernoulli draw, which would cost as much as the layer's own matrix product.
def _dropped(dropout: float) -> int:
    return min(round(dropout * 65536), 65535)


def _kept_scale(scale: float, dropout: float, seed: Tensor | None) -> float:
    return scale / _kept(dropout, seed)


def _kept(dropout: float, seed: Tensor | None) -> float:
    return 1.0 if seed is None else 1 - _dropped(dropout) / 65536


def _keep_mask(x: Tensor, dropout: float, seed: Tensor) -> Tensor:
    """0 with the probability `dropout`, else 1: the same for the same seed and shape, on one kind of device."""
    generator = torch.Generator(device=x.device).manual_seed(int(seed))
    words = torch.empty((x.numel() + 3) // 4, dtype=torch.int64, device=x.device)
    bits = words.random_(-(2**63), None, generator=generator).view(torch.int16)[: x.numel()].view(x.shape)
    return (bits >= _dropped(dropout) - 32768).to(x.dtype)


class _LoRALinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, W, b, A, B, scale, dropout, seed, probe, multiply):
        y = multiply(x, W, b)
        # In place, through a flat view: a view must not be returned, or models could not go on in place (ReLU).
        h = _add_product_of(x, A, B, scale, dropout, seed, into=y)
        ctx.save_for_backward(x, W, A, B, h, seed)
        ctx.bias_dtype = None if b is None else b.dtype
        ctx.options = scale, dropout, probe, multiply
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        (x, W, A, B, h, seed), (scale, dropout, probe, multiply) = ctx.saved_tensors, ctx.options
        need_x, need_W, need_b, *_ = ctx.needs_input_grad
        with torch.autocast(grad.device.type, enabled=False):  # the forward has settled the dtype
            dy, rows = _rows(grad).contiguous(), _rows(x).to(grad.dtype)
            dh, mask, dA, dB = _low_rank_backward(dy, rows, h, A, B, scale, dropout, seed, probe)
            dx = multiply(dy, W.to(dy.dtype).t()) if need_x else None
            dx = _add_product(dx, dh, A, mask).view(x.shape).to(x.dtype) if need_x else None
            dW = (dy.t() @ rows).to(W.dtype) if need_W else None
            db = dy.sum(0).to(ctx.bias_dtype) if need_b else None
        return dx, dW, db, dA, dB, None, None, None, None, None


class _AddLowRank(torch.autograd.Function):
    @staticmethod
    def forward(ctx, y, x, A, B, scale, dropout, seed, probe):
        y = y.clone(memory_format=torch.contiguous_format)
        h = _add_product_of(x, A, B, scale, dropout, seed, into=y)
        ctx.save_for_backward(x, A, B, h, seed)
        ctx.options = scale, dropout, probe
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        (x, A, B, h, seed), (scale, dropout, probe) = ctx.saved_tensors, ctx.options
        with torch.autocast(grad.device.type, enabled=False):
            dy, rows = _rows(grad).contiguous(), _rows(x).to(grad.dtype)
            dh, mask, dA, dB = _low_rank_backward(dy, rows, h, A, B, scale, dropout, seed, probe)
            dx = _add_product(None, dh, A, mask).view(x.shape).to(x.dtype) if ctx.needs_input_grad[1] else None
        return grad, dx, dA, dB, None, None, None, None


def _low_rank_backward(dy, x, h, A, B, scale, dropout, seed, probe):
    """dh = s · dy B, the mask m, dA = dhᵀ (m ∘ x), dB = s · dyᵀ h."""
    s = _kept_scale(scale, dropout, seed)
    dh = (dy @ B.to(dy.dtype)).mul_(s)
    if probe is not None:
        probe(h, dh, s, _kept(dropout, seed))
    mask = None if seed is None else _keep_mask(x, dropout, seed)
    dA = dh.t() @ (x if mask is None else mask * x)
    return dh, mask, dA.to(A.dtype), (dy.t() @ h).to(B.dtype).mul_(s)


def _add_product(dx, dh, A, mask):
    """dx + m ∘ (dh A), in dx's memory where there is a dx."""
    if dx is not None and mask is None:
        return dx.addmm_(dh, A.to(dx.dtype))
    product = dh @ A.to(dh.dtype)
    if mask is not None:
        product.mul_(mask)
    return product if dx is None else dx.add_(product)
