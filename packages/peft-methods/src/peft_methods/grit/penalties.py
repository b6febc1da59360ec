"""The regularizers of GRIT (arXiv 2601.00231) as its published code has them, added to the loss by their gradients:

    λ_K (tr(Aᵀ Σ_a A) + tr(B Σ_g Bᵀ))  +  λ_R (‖(I - P_a) A‖² + ‖B (I - P_g)‖²)

with Σ_a and Σ_g where that code has them, and P the projection on the eigenvectors of Σ that hold the share τ of its
trace. The factors are constants here, as there.
"""

import torch
from torch import Tensor

from .linear import GRITLinear

_SHARE = 0.99  # τ where there is no `energy`: the published default


def add_penalties(parts: list[GRITLinear], options) -> None:
    if not options.curvature_penalty and not options.projection_penalty:
        return
    for part in parts:
        if not part.curvature.weight > 0:
            continue
        a, g = (_penalty(factor, options) for factor in part.curvature.means())
        if part.lora_A.grad is not None:
            part.lora_A.grad += (a @ part.lora_A.to(a)).to(part.lora_A)
        if part.lora_B.grad is not None:
            part.lora_B.grad += (part.lora_B.to(g) @ g).to(part.lora_B)


def _penalty(factor: Tensor, options) -> Tensor:
    """2 λ_K Σ + 2 λ_R (I - P), which multiplies A or B in the gradient."""
    penalty = 2 * options.curvature_penalty * factor
    if options.projection_penalty:
        values, vectors = torch.linalg.eigh(factor)
        values = values.clamp(min=0).flip(0)
        below = values.cumsum(0) - values < (options.energy or _SHARE) * values.sum()
        rest = vectors.flip(1)[:, ~below]
        penalty += 2 * options.projection_penalty * rest @ rest.t()
    return penalty
