"""The curvature of one low-rank product y = x Wᵀ + h Bᵀ, h = s · x Aᵀ: two factors of rank size,

    Σ_a = mean of h hᵀ over the rows         Σ_g = sum of δ δᵀ over the rows, each δ = ∂(loss of one term)/∂(x Aᵀ),
                                                   divided by the number N of the loss's terms

With them the Fisher blocks of K-FAC are F_A = Σ_g ⊗ E[x xᵀ] and F_B = E[g gᵀ] ⊗ Σ_a, g = ∂loss/∂y: exact for deep
linear networks and for a single row. Both are measured on tensors, rank wide, that LoRA's backward pass has at hand.

Martens and Grosse, "Optimizing Neural Networks with Kronecker-factored Approximate Curvature" (arXiv 1503.05671); every
position of a sequence is a row, as in "K-FAC expand" of Eschenhagen et al. (arXiv 2311.00636).
"""

from collections import defaultdict
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor


class Curvature:
    """What is measured at one module. `sums` and `rows` are those of the optimizer's coming step, `average` is kept.
    `noted` is what `count` has not added to the sums yet.

    sums [2, rank, rank]: Σ h hᵀ and Σ δ δᵀ over `rows` rows. average [2, rank, rank]: Σ_a and Σ_g, averaged over the
    steps with exponentially falling weights that add up to `weight`, which is zero before anything was measured. They
    are float32, or float64 beside float64 adapters. `terms` is the number N of the loss's terms, if it is known.
    """

    # Plain attributes of a plain object, no buffers: those DistributedDataParallel would overwrite by the first
    # process's, and a model's `half()` would cast.
    def __init__(self, parameter: Tensor):
        rank, dtype = len(parameter), torch.promote_types(parameter.dtype, torch.float32)
        self.sums = torch.zeros(2, rank, rank, dtype=dtype, device=parameter.device)
        self.rows = self.sums.new_zeros(())
        self.average = torch.zeros_like(self.sums)
        self.weight = torch.zeros_like(self.rows)
        self.terms: float | Tensor | None = None
        self.empty = True
        self.noted: list[tuple[Tensor, Tensor, float, float]] = []

    def add(self, x: Tensor, dx: Tensor, s: float, kept: float) -> None:
        """Note the rows of one backward pass, [rows, rank] each, for `count`: s · x is h, and kept · dx is δ."""
        self.noted.append((x, dx, s, kept))

    def clear(self) -> None:
        self.noted.clear()
        if not self.empty:
            self.sums.zero_()
            self.rows.zero_()
            self.empty = True

    def to(self, device: torch.device) -> None:
        count([self])
        for name in ("sums", "rows", "average", "weight"):
            setattr(self, name, getattr(self, name).to(device))

    def means(self) -> Tensor:
        """Σ_a and Σ_g, [2, rank, rank]; not numbers before anything was measured."""
        return self.average / self.weight

    def change_basis(self, forth: Tensor, back: Tensor) -> None:
        """Go over to A' = `forth` A and B' = B `back`, with fewer rows and columns perhaps."""
        a, g = self.average.to(forth)
        average = torch.stack([forth @ a @ forth.t(), back.t() @ g @ back])
        average = (average + average.mT) / 2
        self.average = average.to(self.average)
        self.sums = torch.zeros_like(self.average)


def by_shape(curvatures: Iterable[Curvature]) -> list[list[Curvature]]:
    """Groups of equal rank, dtype and device, that can be computed with as one stack."""
    groups = defaultdict(list)
    for curvature in curvatures:
        groups[curvature.sums.shape, curvature.sums.dtype, curvature.sums.device].append(curvature)
    return list(groups.values())


def count(curvatures: Iterable[Curvature]) -> None:
    """Add what the backward passes have noted to the sums.

    A row whose δ is zero has no part in the loss (padding, or what comes after the last label): it is no sample. Equal
    shapes are computed with as one stack: their products are so small that most of the time would go by between them.
    """
    groups = defaultdict(list)
    for curvature in curvatures:
        for x, dx, s, kept in curvature.noted:
            groups[x.shape, x.dtype, x.device, curvature.sums.dtype, s, kept].append((curvature, x, dx))
        curvature.noted.clear()
    for (*_, dtype, s, kept), group in groups.items():
        owners, xs, dxs = zip(*group, strict=True)
        pairs = torch.stack([torch.stack(xs), torch.stack(dxs)], 1).to(dtype)
        counted = pairs[:, 1].any(-1, keepdim=True)
        pairs[:, 0] *= counted
        sums = pairs.mT @ pairs
        sums[:, 0] *= s**2  # a number, and no tensor of them: for that, a GPU would be waited for
        sums[:, 1] *= kept**2
        for owner, its, rows in zip(owners, sums, counted.sum((1, 2)), strict=True):
            owner.sums += its
            owner.rows += rows
            owner.empty = False


def close_window(curvatures: list[Curvature], decay: float, loss: str, scale: float) -> None:
    """Average what was measured for this step in, and start anew.

    The training loss is a `loss` of "mean" or "sum" over N terms, `scale` times as large in the backward pass. With
    several processes it is the mean of theirs, as with DistributedDataParallel, and their rows are counted together.
    Where nothing was measured, or an overflow, the average stays as it is.
    """
    count(curvatures)
    processes = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    if processes > 1:
        _add_up(curvatures)
    for group in by_shape(curvatures):
        sums = torch.stack([curvature.sums for curvature in group])
        rows = torch.stack([curvature.rows for curvature in group])
        terms = _terms(group, rows)
        # δ of one term alone is N times as large as in their mean.
        weights = terms / processes**2 if loss == "mean" else 1 / terms
        measured = sums * torch.stack([1 / rows, weights / scale**2], 1)[..., None, None]
        weight = torch.stack([curvature.weight for curvature in group])
        average = torch.stack([curvature.average for curvature in group])
        good = (rows > 0) & measured.isfinite().flatten(1).all(1)
        average = torch.where(good[:, None, None, None], average.lerp(measured, 1 - decay), average)
        weight = torch.where(good, weight.lerp(torch.ones_like(weight), 1 - decay), weight)
        for i, curvature in enumerate(group):  # in place: a state dict in someone's hands stays the current one
            curvature.average.copy_(average[i])
            curvature.weight.copy_(weight[i])
            curvature.clear()


def _terms(group: list[Curvature], rows: Tensor) -> Tensor:
    """N of each curvature [curvatures]; the number of its rows where that is not known."""
    # All have been told one and the same, as a rule: it is brought to the device once.
    told = {id(curvature.terms): curvature.terms for curvature in group if curvature.terms is not None}
    terms = {key: torch.as_tensor(one, dtype=rows.dtype, device=rows.device) for key, one in told.items()}
    return torch.stack([terms.get(id(curvature.terms), own) for curvature, own in zip(group, rows, strict=True)])


def _add_up(curvatures: list[Curvature]) -> None:
    """Sums over the processes, in one message for each device and dtype."""
    groups = defaultdict(list)
    for curvature in curvatures:
        groups[curvature.sums.device, curvature.sums.dtype] += [curvature.sums, curvature.rows]
    for tensors in groups.values():
        message = torch.cat([tensor.flatten() for tensor in tensors])
        dist.all_reduce(message)
        for tensor, total in zip(tensors, message.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(total.view_as(tensor))
    for curvature in curvatures:
        curvature.empty = False
