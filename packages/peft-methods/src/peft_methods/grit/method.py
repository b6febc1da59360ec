"""GRIT: LoRA trained along natural gradients, by the curvature (Fisher information) of its rank space,

    ∇A ← Σ_g⁻¹ ∇A,   ∇B ← ∇B Σ_a⁻¹,      Σ_a = E[h hᵀ], h = s · x Aᵀ,   Σ_g = E[δ δᵀ], δ = ∂loss/∂(x Aᵀ)

with a trust region, and now and then a change of basis that keeps B A, orders it by importance, and may lower the rank.

"GRIT: Geometry-Aware PEFT with K-FAC Preconditioning, Fisher-Guided Reprojection, and Dynamic Rank Adaptation"
(arXiv 2601.00231). Its published code has Σ_a and Σ_g the other way round; `published=True` is for comparing with it.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch.distributed as dist
from torch import Tensor, nn

from ..errors import AdapterError
from ..lora import LoRA
from ..targets import TargetError, is_linear
from ..tree import bare
from .linear import GRITLinear
from .natural import NaturalGradient


@dataclass(frozen=True)
class GRIT(LoRA):
    """LoRA's options, on linear layers only and without `dora`, and those of the natural gradient.

    Nothing of GRIT happens before `attachment.bind(optimizer)`. It works inside the optimizer's step, so that what
    clips gradients before that sees the plain ones; `max_norm` clips the natural ones.

    Options:
        damping: ε, as a share of a factor's mean eigenvalue.
        decay: of the factors' average over the steps.
        trust_region: κ, the bound on a step's change; `None` for none. Adam's steps hardly depend on it.
        max_norm: the gradients of all of GRIT's factors are scaled down to this norm, after all else.
        warmup: so many steps have plain gradients; the curvature is measured only.
        loss: "mean" or "sum" over the loss's terms, whose number `Attachment.loss_terms` tells.
        fisher: "empirical" measures in training's own backward passes, "sampled" in those inside `measuring`.
        rebalance_every: steps between two changes of basis, after the warm-up; `None` for never.
        energy: τ, the share of Σ S² that the directions kept have to hold; `None` leaves the rank as it is.
        min_rank, patience: the smallest rank, and how many changes of basis in a row have to find one below enough.
        curvature_penalty, projection_penalty: λ_K and λ_R of `grit/penalties.py`.
        published: the published assignment of the factors, ∇A ← Σ_a⁻¹ ∇A and ∇B ← ∇B Σ_g⁻¹. It is no natural gradient,
            and here for comparisons only.

    Raises:
        ValueError: an option has a value that makes no sense, or makes none beside another.
    """

    damping: float = 1e-3
    decay: float = 0.95
    trust_region: float | None = 1e-3
    max_norm: float | None = None
    warmup: int = 0
    loss: str = "mean"
    fisher: str = "empirical"
    rebalance_every: int | None = 100
    energy: float | None = None
    min_rank: int = 4
    patience: int = 2
    curvature_penalty: float = 0.0
    projection_penalty: float = 0.0
    published: bool = False

    _linear = GRITLinear

    def __post_init__(self):
        super().__post_init__()
        for option, known in (("loss", ("mean", "sum")), ("fisher", ("empirical", "sampled"))):
            if getattr(self, option) not in known:
                raise ValueError(f"{option}={getattr(self, option)!r}: known are {', '.join(known)}")
        for option in ("damping", "warmup", "curvature_penalty", "projection_penalty"):
            if not 0 <= getattr(self, option) < math.inf:
                raise ValueError(f"{option}={getattr(self, option)!r}: give a number of at least 0")
        for option in ("trust_region", "max_norm", "rebalance_every", "min_rank", "patience"):
            if getattr(self, option) is not None and not 0 < getattr(self, option) < math.inf:
                raise ValueError(f"{option}={getattr(self, option)!r}: give a positive number")
        if not 0 <= self.decay < 1:
            raise ValueError(f"decay={self.decay!r}: give a number in [0, 1)")
        if self.energy is not None and not 0 < self.energy <= 1:
            raise ValueError(f"energy={self.energy!r}: give a share in (0, 1]")
        if self.energy is not None and self.rebalance_every is None:
            raise ValueError(
                "energy without rebalance_every: the rank shrinks in changes of basis; give their interval"
            )
        if self.dora:
            raise ValueError("dora=True: GRIT's curvature is that of plain LoRA; leave it out")

    def _part(self, name: str, module: nn.Module) -> GRITLinear:
        if not is_linear(module):
            raise TargetError(f"{name}: GRIT goes on linear layers only, not on a {type(bare(module)).__name__}")
        return super()._part(name, module)

    def bind(self, attachment, optimizer, scaler) -> None:
        """Precondition the optimizer's gradients from now on.

        Raises:
            AdapterError: the rank is to shrink in one of several processes, whose buffers for gradients cannot.
        """
        if self.energy is not None and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            raise AdapterError("GRIT: ranks cannot shrink under several processes; give energy=None")
        for part in _parts(attachment):
            part.measure(apart=self.fisher == "sampled")
        NaturalGradient(attachment, self, scaler).register(optimizer)

    def loss_terms(self, attachment, count: float | Tensor | None) -> None:
        for part in _parts(attachment):
            part.curvature.terms = count


@contextmanager
def measuring(attachment) -> Iterator[None]:
    """Inside, backward passes measure the curvature of a GRIT with fisher="sampled", and leave `.grad` as it was.

    For the true Fisher information, back-propagate the loss with labels drawn from the model's own predictions, scaled
    as in training (also by a GradScaler), and give the number of its terms by `Attachment.loss_terms`. Under
    DistributedDataParallel, run the module inside it, which does not send gradients around.

    Raises:
        AdapterError: the attachment is not bound yet, or is no GRIT with fisher="sampled".
    """
    parts = _parts(attachment)
    if not parts or not all(part.apart for part in parts):
        raise AdapterError('measuring: first bind() an attachment of GRIT(fisher="sampled")')
    gradients = {parameter: parameter.grad for parameter in attachment.model.parameters()}
    for part in parts:
        part.probe = part.count_rows
    for parameter in gradients:
        parameter.grad = None
    try:
        yield
    finally:
        for part in parts:
            part.probe = None
        for parameter, gradient in gradients.items():
            parameter.grad = gradient


def _parts(attachment) -> list[GRITLinear]:
    return [part for part in attachment.modules.values() if isinstance(part, GRITLinear)]
