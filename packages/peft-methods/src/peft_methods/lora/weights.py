"""What a linear layer's weight does to vectors, whatever it is stored as: by calling the layer.

So a 4-bit weight is used as its own layer reads it, and a part of its rows or columns at a time.
"""

import torch
from torch import Tensor, nn

from ..bridge import layout

ROWS = 256  # of the identity at once


def applied(module: nn.Module, x: Tensor) -> Tensor:
    """x Wᵀ for rows x [n, in], in the dtype in which the layer answers."""
    weight = module.weight
    x = x.to(weight.dtype) if weight.is_floating_point() and weight.dtype.itemsize > 1 else x
    y = type(module).forward(module, x)  # without hooks, which are for the model's own calls
    return y if module.bias is None else y - module.bias.to(y.dtype)


def dense(module: nn.Module) -> Tensor:
    """W [out, in] in float32 (float64 if it is that)."""
    plain = layout(module)
    if not plain.quantized:
        weight = module.weight.t() if plain.transposed else module.weight
        return weight.to(weight.dtype if weight.dtype == torch.float64 else torch.float32)
    columns = [applied(module, rows).float() for rows in _identity(module)]
    return torch.cat(columns).t()


def squared_norms(module: nn.Module) -> Tensor:
    """Of the rows of W, [out]."""
    plain = layout(module)
    if not plain.quantized:
        return dense(module).square().sum(1)
    return sum(applied(module, rows).float().square().sum(0) for rows in _identity(module))


def _identity(module: nn.Module):
    size = layout(module).in_features
    return torch.eye(size, device=module.weight.device).split(ROWS)
