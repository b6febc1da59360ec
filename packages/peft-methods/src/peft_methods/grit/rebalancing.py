"""Reprojection: A and B in the basis in which both factors of the curvature are the same diagonal matrix S,

    U S Vᵀ = svd(Σ_g^½ Σ_a^½)        A' = T A,  T = S^-½ Uᵀ Σ_g^½        B' = B L,  L = Σ_a^½ V S^-½ = T⁻¹

The product B' A' = B A is kept, and S² are the eigenvalues of Σ_a Σ_g, whatever the basis. Leaving out the directions
i > k changes the model least among all products of rank k, by Σ S_i² to second order, so that k can be chosen by it:
the smallest with Σ_{i≤k} S_i² ≥ τ Σ S_i².

In place of GRIT's projection (arXiv 2601.00231), which changes the product. Moore, "Principal component analysis in
linear systems" (1981), has the same basis for dynamical systems, as balanced truncation.
"""

import torch
from torch import Tensor, nn

from .linear import GRITLinear, set_value

# What torch's optimizers keep that goes with the gradient, and with its square. Others start anew.
_LINEAR = {"exp_avg", "momentum_buffer", "grad_avg"}
_SQUARED = {"exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum", "acc_delta"}


@torch.no_grad()
def rebalance(parts: list[GRITLinear], optimizer: torch.optim.Optimizer, options) -> None:
    """Put every measured part into its balanced basis, with the optimizer's moments; of smaller rank, if `energy` says
    so for the `patience`-th time in a row."""
    for part in parts:
        if not part.curvature.weight > 0:
            continue
        forth, back, spectrum = balance(part.curvature.means().double().cpu(), options.damping)
        rank = len(spectrum)
        if options.energy is not None:
            needed = max(rank_for(spectrum, options.energy), min(options.min_rank, rank))
            part.votes.copy_(part.votes + 1 if needed < rank else 0 * part.votes)
            if part.votes >= options.patience:
                rank = needed
                part.votes.zero_()
        change_basis(part, forth[:rank], back[:, :rank], optimizer)


def balance(factors: Tensor, damping: float) -> tuple[Tensor, Tensor, Tensor]:
    """T, its inverse L and the diagonal of S, falling, from Σ_a and Σ_g [2, rank, rank], damped as for gradients."""
    mean = factors.diagonal(dim1=-2, dim2=-1).mean(-1)
    identity = torch.eye(factors.shape[-1], dtype=factors.dtype)
    values, vectors = torch.linalg.eigh(factors + damping * mean[:, None, None] * identity)
    values = values.clamp(min=torch.finfo(values.dtype).eps * values.amax(-1, keepdim=True))
    root_a, root_g = vectors * values.sqrt()[:, None] @ vectors.mT
    U, S, Vt = torch.linalg.svd(root_g @ root_a)
    return S.rsqrt()[:, None] * (U.t() @ root_g), root_a @ Vt.t() * S.rsqrt(), S


def rank_for(spectrum: Tensor, energy: float) -> int:
    """The least k with Σ_{i≤k} S_i² ≥ energy · Σ S_i²."""
    kept = spectrum.square().cumsum(0)
    return min(int((kept < energy * kept[-1]).sum()) + 1, len(spectrum))


@torch.no_grad()
def change_basis(part: GRITLinear, forth: Tensor, back: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """A ← `forth` A and B ← B `back`, in float64, with what the optimizer and the curvature know about them.

    A natural gradient changes basis like the parameter itself, and the moments are of natural gradients. Second moments
    change by the squared entries, as if the gradients along different directions were not correlated.
    """
    for parameter, to_new in (
        # On the CPU, where `balance` was: not every device has float64.
        (part.lora_A, lambda tensor, power: forth**power @ tensor.cpu().double()),
        (part.lora_B, lambda tensor, power: tensor.cpu().double() @ back**power),
    ):
        _carry(optimizer, parameter, to_new)
        gradient = None if parameter.grad is None else to_new(parameter.grad, 1).to(parameter.grad)
        set_value(parameter, to_new(parameter, 1))
        parameter.grad = gradient
    part.curvature.change_basis(forth, back)


def _carry(optimizer: torch.optim.Optimizer, parameter: nn.Parameter, to_new) -> None:
    state = optimizer.state.get(parameter, {})
    moments = {name: value for name, value in state.items() if isinstance(value, Tensor) and value.dim()}
    if any(name not in _LINEAR | _SQUARED or value.shape != parameter.shape for name, value in moments.items()):
        optimizer.state.pop(parameter)
        return
    for name, value in moments.items():
        state[name] = to_new(value, 2 if name in _SQUARED else 1).to(value)
