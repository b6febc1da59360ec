"""The natural gradient in the rank space, put in the place of the gradient before an optimizer's step:

    ∇A ← Σ_g⁻¹ ∇A        ∇B ← ∇B Σ_a⁻¹        each Σ damped: Σ + ε · trace(Σ) / rank · I

then both times ν = min(1, √(κ / Σ lr² ⟨natural, ∇⟩)), which bounds the step's change of the model (KL divergence).

K-FAC: Martens and Grosse (arXiv 1503.05671); trust region: Ba et al., "Distributed Second-Order Optimization using
Kronecker-Factored Approximations" (ICLR 2017); in the rank space: GRIT (arXiv 2601.00231), which has the factors the
other way round. With them as here, ΔW does not depend on which of the A and B with the same product it starts from.
"""

from collections import defaultdict

import torch
from torch import Tensor, nn

from ..errors import AdapterError
from .curvature import by_shape, close_window
from .linear import GRITLinear
from .penalties import add_penalties
from .rebalancing import rebalance


class NaturalGradient:
    """The hooks before and after every step of one optimizer. `options` is the `GRIT` of the attachment."""

    def __init__(self, attachment, options, scaler):
        self.attachment, self.options, self.scaler = attachment, options, scaler

    def register(self, optimizer: torch.optim.Optimizer) -> None:
        """Take part in the optimizer's steps, once: a second time only tells the scaler."""
        for hook in optimizer._optimizer_step_pre_hooks.values():
            other = getattr(hook, "__self__", None)
            if isinstance(other, NaturalGradient) and other.attachment is self.attachment:
                other.scaler = self.scaler
                return
        optimizer.register_step_pre_hook(self.before_step)
        optimizer.register_step_post_hook(self.after_step)

    @torch.no_grad()
    def before_step(self, optimizer: torch.optim.Optimizer, args: tuple, kwargs: dict) -> None:
        if any(callable(argument) for argument in (*args[1:], *kwargs.values())):
            raise AdapterError("GRIT: a closure has no gradients before step(); call backward() first, step() after it")
        rates, parts = self._share_of(optimizer)
        curvatures = [part.curvature for part in parts]
        if _skips(optimizer):
            for curvature in curvatures:
                curvature.clear()
            return
        _unscale(optimizer)
        close_window(curvatures, self.options.decay, self.options.loss, self.scaler.get_scale() if self.scaler else 1.0)
        add_penalties(parts, self.options)
        ready = [part for part in parts if part.steps >= self.options.warmup]
        precondition(ready, rates, self.options)
        if self.options.max_norm is not None:
            mine = [parameter for part in parts for parameter in (part.lora_A, part.lora_B) if parameter in rates]
            nn.utils.clip_grad_norm_(mine, self.options.max_norm)

    @torch.no_grad()
    def after_step(self, optimizer: torch.optim.Optimizer, args: tuple, kwargs: dict) -> None:
        if _skips(optimizer):
            return
        rates, parts = self._share_of(optimizer)
        due = []
        for part in parts:
            part.steps += 1
            after = int(part.steps) - self.options.warmup
            every = self.options.rebalance_every
            if every and after > 0 and after % every == 0 and part.lora_A in rates and part.lora_B in rates:
                due.append(part)
        rebalance(due, optimizer, self.options)

    def _share_of(self, optimizer) -> tuple[dict[nn.Parameter, float | Tensor], list[GRITLinear]]:
        """The optimizer's parameters with their learning rates, and the attachment's parts among them."""
        if not self.attachment.active:
            return {}, []
        rates = {parameter: group["lr"] for group in optimizer.param_groups for parameter in group["params"]}
        parts = [part for part in self.attachment.modules.values() if isinstance(part, GRITLinear)]
        return rates, [part for part in parts if part.lora_A in rates or part.lora_B in rates]


def precondition(parts: list[GRITLinear], rates: dict[nn.Parameter, float | Tensor], options) -> None:
    """Put natural gradients in the place of those of the parameters in `rates`, which gives their learning rates.

    Where nothing has been measured yet, B is zero, and gradients stay as they are.
    """
    groups = defaultdict(list)  # of equal shapes, to be computed with as one stack
    for part, (inverse, measured) in inverses(parts, options.damping).items():
        for_B, for_A = inverse.flip(0) if options.published else inverse
        for parameter, matrix in ((part.lora_A, for_A), (part.lora_B, for_B)):
            if parameter in rates and parameter.grad is not None:
                key = parameter is part.lora_A, parameter.shape, matrix.dtype, matrix.device
                groups[key].append((parameter, matrix, measured))
    natural, changes = [], []
    for (is_A, *_), group in groups.items():
        parameters, matrices, measured = zip(*group, strict=True)
        inverse, measured = torch.stack(matrices), torch.stack(measured)
        plain = torch.stack([parameter.grad for parameter in parameters]).to(inverse)
        natural.append((parameters, is_A, plain, inverse, measured))
        gram = plain @ plain.mT if is_A else plain.mT @ plain  # ⟨Σ⁻¹ ∇, ∇⟩ = ⟨Σ⁻¹, ∇ ∇ᵀ⟩, rank wide
        squares = inverse.new_tensor([float(rates[parameter]) ** 2 for parameter in parameters])
        changes.append((squares * measured * (inverse * gram).sum((1, 2))).sum())
    share = _share_within(options.trust_region, changes)
    for parameters, is_A, plain, inverse, measured in natural:
        inverse = inverse * (share.to(inverse) ** measured)[:, None, None]
        gradients = inverse @ plain if is_A else plain @ inverse
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad.copy_(gradient)


def _share_within(trust_region: float | None, changes: list[Tensor]) -> Tensor:
    """ν."""
    if trust_region is None or not changes:
        return torch.ones(())
    change = torch.stack([change.to(changes[0]) for change in changes]).sum().abs()
    return (trust_region / change).sqrt().clamp(max=1.0)


def inverses(parts: list[GRITLinear], damping: float) -> dict[GRITLinear, tuple[Tensor, Tensor]]:
    """Of the damped Σ_a and Σ_g, [2, rank, rank] for every part, and 1; or the identity and 0, if they are unknown."""
    owners = {part.curvature: part for part in parts}
    found = {}
    for group in by_shape(owners):
        factors, measured = damped(torch.stack([curvature.means() for curvature in group]), damping)
        cholesky, failed = torch.linalg.cholesky_ex(factors)
        measured = (measured & (failed == 0)).all(1)
        inverse = torch.where(measured[:, None, None, None], torch.cholesky_inverse(cholesky), _identity(factors))
        for curvature, *its in zip(group, inverse, measured.to(inverse), strict=True):
            found[owners[curvature]] = its
    return found


def damped(factors: Tensor, damping: float) -> tuple[Tensor, Tensor]:
    """Σ + ε · trace(Σ) / rank · I for Σ [..., rank, rank], and whether there is one; if not, the identity."""
    mean = factors.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
    measured = mean.isfinite() & (mean > 0)
    return torch.where(measured, factors + damping * mean * _identity(factors), _identity(factors)), measured[..., 0, 0]


def _identity(factors: Tensor) -> Tensor:
    return torch.eye(factors.shape[-1], dtype=factors.dtype, device=factors.device)


# A GradScaler leaves it to a fused optimizer to unscale gradients and to skip steps, by these attributes of it.
def _skips(optimizer: torch.optim.Optimizer) -> bool:
    overflow = getattr(optimizer, "found_inf", None)
    return overflow is not None and bool(overflow)


def _unscale(optimizer: torch.optim.Optimizer) -> None:
    if (scale := getattr(optimizer, "grad_scale", None)) is None:
        return
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None:
                parameter.grad.div_(scale.to(parameter.grad.device))
    optimizer.grad_scale = None
