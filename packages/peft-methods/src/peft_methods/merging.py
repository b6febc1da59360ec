"""Several LoRA attachments combined into one, from the products Δᵢ = sᵢ Bᵢ Aᵢ that they add to each weight:

    linear   Σ wᵢ Δᵢ, exactly: the factors side by side, of rank Σ rankᵢ
    svd      the best approximation of that sum of a smaller rank
    ties     of each Δᵢ the largest entries, then the mean of those wᵢ Δᵢ that have the sign of their sum
    dare     of each Δᵢ entries drawn at random, scaled up by the inverse of their share, then Σ wᵢ Δᵢ

ties and dare are given the best approximation of the rank asked for.

TIES: Yadav et al. (arXiv 2306.01708); DARE: Yu et al. (arXiv 2311.03099).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .attachment import Attachment, attach
from .errors import AdapterError
from .lora import LoRA, LoRALinear
from .targets import exact_targets

_HOW = ("linear", "svd", "ties", "dare")


@torch.no_grad()
def combine(
    attachments: Sequence[Attachment],
    weights: Sequence[float] | None = None,
    how: str = "linear",
    rank: int | None = None,
    density: float = 0.5,
    seed: int = 0,
) -> Attachment:
    """One LoRA attachment in the place of several on the same model; they are detached.

    A module that only some of them have counts as unchanged by the others. `weights` are 1 each unless given. `rank` is
    the sum of the ranks for "linear" and their maximum otherwise, unless given (not for "linear"). `density` is the
    share of entries that "ties" and "dare" keep; `seed` is dare's.

    Raises:
        AdapterError: one of them is no plain LoRA of linear layers or is on another model, or a number makes no sense;
            nothing has changed then.
    """
    weights = [1.0] * len(attachments) if weights is None else list(weights)
    _check(attachments, weights, how, rank, density)
    model = attachments[0].model
    products: dict[str, list[tuple[float, Tensor, Tensor]]] = {}  # weight, B, A, by module
    for attachment, weight in zip(attachments, weights, strict=True):
        for path, part in attachment.modules.items():
            A, B = part.factors()
            products.setdefault(path, []).append((weight, B * part.scale, A.clone()))
    largest = max(len(A) for product in products.values() for _, _, A in product)
    generator = torch.Generator().manual_seed(seed)
    factors = {}
    for path, product in products.items():
        if how == "linear":
            B, A = _side_by_side(product)
        elif how == "svd":
            B, A = _truncated(*_side_by_side(product), rank or largest)
        else:
            deltas = [(weight, B @ A) for weight, B, A in product]
            total = _ties(deltas, density) if how == "ties" else _dare(deltas, density, generator)
            B, A = _truncated(total, torch.eye(total.shape[1], dtype=total.dtype, device=total.device), rank or largest)
        factors[path] = B, A
    for attachment in reversed(attachments):
        attachment.detach()
    width = max(len(A) for _, A in factors.values())
    combined = attach(model, LoRA(rank=width, alpha=width, targets=exact_targets(model, factors)))
    for path, (B, A) in factors.items():  # narrower ones keep zeros in the rest
        part = combined.modules[path]
        part.lora_A.zero_()[: len(A)] = A
        part.lora_B[:, : len(A)] = B
    return combined


def _check(attachments, weights, how, rank, density) -> None:
    if not attachments:
        raise AdapterError("combine: give at least one attachment")
    if how not in _HOW:
        raise AdapterError(f"combine: how={how!r} is unknown; known: {', '.join(_HOW)}")
    if len(weights) != len(attachments):
        raise AdapterError(f"combine: {len(weights)} weights for {len(attachments)} attachments; give one for each")
    if rank is not None and (rank < 1 or how == "linear"):
        raise AdapterError(f"combine: rank={rank} with how={how!r}; give at least 1, or 'svd' for a smaller rank")
    if not 0 < density <= 1:
        raise AdapterError(f"combine: density={density}; give a share in (0, 1]")
    for attachment in attachments:
        if attachment.model is not attachments[0].model:
            raise AdapterError("combine: the attachments are on different models; load them on one")
        for path, part in attachment.modules.items():
            if type(part) is not LoRALinear:
                raise AdapterError(f"combine: {path or attachment.method}: only plain LoRA of linear layers is a sum")


def _side_by_side(product: list[tuple[float, Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    return torch.cat([weight * B for weight, B, _ in product], 1), torch.cat([A for _, _, A in product])


def _truncated(B: Tensor, A: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The best approximation of B A of this rank, its singular values shared between the factors.

    By the QR decompositions of the factors, so that no matrix of the layer's size is decomposed when they are thin.
    """
    Q_B, R_B = torch.linalg.qr(B)
    Q_A, R_A = torch.linalg.qr(A.t())
    U, S, Vt = torch.linalg.svd(R_B @ R_A.t(), full_matrices=False)
    root = S[:rank].sqrt()
    return Q_B @ U[:, :rank] * root, root[:, None] * Vt[:rank] @ Q_A.t()


def _ties(deltas: list[tuple[float, Tensor]], density: float) -> Tensor:
    trimmed = torch.stack([weight * _largest(delta, density) for weight, delta in deltas])
    agrees = trimmed.sign() == trimmed.sum(0).sign()
    return (trimmed * agrees).sum(0) / (agrees & (trimmed != 0)).sum(0).clamp(min=1)


def _largest(delta: Tensor, density: float) -> Tensor:
    kept = max(1, round(density * delta.numel()))
    indices = delta.abs().flatten().topk(kept).indices
    return torch.zeros_like(delta).flatten().index_copy(0, indices, delta.flatten()[indices]).view_as(delta)


def _dare(deltas: list[tuple[float, Tensor]], density: float, generator: torch.Generator) -> Tensor:
    masks = [(torch.rand(delta.shape, generator=generator) < density).to(delta) for _, delta in deltas]
    return sum(weight / density * mask * delta for (weight, delta), mask in zip(deltas, masks, strict=True))
