"""Adapters put on a model, summed with weights, made smaller, and merged."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

import peft_methods as pm
from vlm_export.errors import ExportError
from vlm_export.source import Source
from vlm_models import VLM
from vlm_runs import RunError
from vlm_runs.adapters import VISION, Adapter, put_on


def attach(vlm: VLM, source: Source) -> list[Adapter]:
    """The adapter on the model, and that of the vision part; of several sources their weighted sum, exactly."""
    weights = list(source.adapters.values())
    if weights == [1.0]:
        (folder,) = source.adapters
        return put_on(vlm.model, folder)
    attachments = [pm.load(vlm.model, folder) for folder in source.adapters]
    try:
        return [pm.combine(attachments, weights)]
    except pm.AdapterError as error:
        raise ExportError(f"--adapters: {error}") from error


@dataclass(frozen=True)
class Resized:
    """How far the products s B A of a smaller rank are from what they were, by relative Frobenius norm.

    error: of all modules together. worst: the module with the largest error of its own, and that.
    """

    rank: int
    error: float
    worst: tuple[str, float]

    def __str__(self) -> str:
        return f"{self.error:.2%} of the update's norm is lost; most at {self.worst[0]}, {self.worst[1]:.2%}"


@torch.no_grad()
def resize(attachment: Adapter, rank: int) -> tuple[pm.Attachment, Resized]:
    """The best approximation of a LoRA of this rank, by the singular value decomposition of each product.

    Raises:
        ExportError: it is no plain LoRA of linear layers.
    """
    if not isinstance(attachment, pm.Attachment):
        raise ExportError(f"--rank {rank}: this kind of adapter is PEFT's own; only a LoRA can be resized")
    model = attachment.model
    before = _factors(attachment)
    try:
        smaller = pm.combine([attachment], how="svd", rank=rank)
    except pm.AdapterError as error:
        raise ExportError(f"--rank {rank}: {error}") from error
    lost, norms = {}, {}
    for path, (B, A) in _factors(smaller).items():
        B0, A0 = before[path]
        norms[path] = _norm2(B0, A0)
        lost[path] = _norm2(torch.cat([B0, -B], 1), torch.cat([A0, A]))
    assert pm.attachments(model) == [smaller]
    own = {path: (lost[path] / norms[path]) ** 0.5 if norms[path] else 0.0 for path in lost}
    worst = max(own, key=own.get)
    total = (sum(lost.values()) / max(sum(norms.values()), 1e-300)) ** 0.5
    return smaller, Resized(rank, total, (worst, own[worst]))


def _factors(attachment: pm.Attachment) -> dict[str, tuple[Tensor, Tensor]]:
    """B and A of each module in float64, on the CPU, the scale in B; {} for what has none."""
    parts = {path: part for path, part in attachment.modules.items() if hasattr(part, "factors")}
    pairs = {path: part.factors() for path, part in parts.items()}
    return {path: (B.cpu().double() * parts[path].scale, A.cpu().double()) for path, (A, B) in pairs.items()}


def _norm2(B: Tensor, A: Tensor) -> float:
    """‖B A‖², without forming B A."""
    return max(float(((B.t() @ B) * (A @ A.t())).sum()), 0.0)


def merge(attachments: Sequence[Adapter]) -> None:
    """Put the adapters into the weights for good."""
    for attachment in attachments:
        try:
            attachment.merge()
        except (pm.AdapterError, RunError) as error:
            raise ExportError(f"cannot be merged: {error}; --to run exports it as it is") from error
        attachment.detach(keep_merged=True)


def save(attachments: Sequence[Adapter], folder: Path, base: str) -> None:
    """As vlm-train does: the adapter, and in it the folder of the vision part's."""
    for attachment, place in zip(attachments, (folder, folder / VISION), strict=False):
        attachment.save(place, base_model=base)


def what_peft_reads(attachment: Adapter) -> str:
    """What Hugging Face PEFT makes of the files, where that is not all that is here."""
    method = attachment.method if isinstance(attachment, pm.Attachment) else None
    if isinstance(method, pm.GRIT):
        return "reads a LoRA with the same logits; GRIT's options stay in the file's metadata, for training on here"
    if isinstance(method, pm.LoRA) and method.initialization in ("pissa", "olora"):
        return "reads a LoRA of twice the rank with the same logits: what the start took from the weights is in it"
    return "reads the same files as are in a run's adapter folder: nothing had to be converted"
