"""DoRA: LoRA of the weight's direction beside a trained magnitude of each output,

    y = m / ‖W + s B A‖ ∘ (x Wᵀ + s · dropout(x) Aᵀ Bᵀ) + b

where the norms are of rows and count as constants in the gradient. W + s B A is never formed:

    ‖W + s B A‖² = ‖W‖² + 2 s ⟨W, B A⟩ + s² ‖B A‖²,      ⟨W, B A⟩ = Σ (W Aᵀ) ∘ B,      ‖B A‖² = Σ (B A Aᵀ) ∘ B

Liu et al. (arXiv 2402.09353), equations 5 and 11.
"""

import torch
from torch import Tensor, nn

from ..tree import bare
from .linear import LoRALinear
from .weights import applied, squared_norms


class DoRALinear(LoRALinear):
    """As `LoRALinear`, with `magnitude` [out], which starts as the norms of W's rows."""

    def __init__(self, base: nn.Module, rank: int, scale: float, dropout: float):
        super().__init__(base, rank, scale, dropout)
        self._known: dict[str, tuple[tuple, Tensor]] = {}
        self.magnitude = nn.Parameter(torch.empty_like(self.lora_B[:, 0]))

    def adapter_parameters(self) -> dict[str, nn.Parameter]:
        return {**super().adapter_parameters(), "magnitude": self.magnitude}

    @torch.no_grad()
    def start(self) -> None:
        """Set the magnitude to the norms, so that nothing is changed: the last step of initialization."""
        self.magnitude.copy_(self.norms())

    def forward(self, x: Tensor) -> Tensor:
        if not self.active:
            return self.base(x)
        z = self._answer(x, None)
        share = (self.magnitude / self.norms()).to(z.dtype)
        bias = self.base.bias
        return z * share if bias is None else torch.addcmul(bias.to(z.dtype), z, share)

    @torch.no_grad()
    def norms(self) -> Tensor:
        """Of the rows of W + s B A, [out]. While not training they are computed once for the same A, B and W."""
        A, B = self.factors()
        W2 = self._once("weight", lambda: squared_norms(bare(self)), bare(self).weight)
        if self.training:
            return self._norms(A, B, W2)
        return self._once("norms", lambda: self._norms(A, B, W2), self.lora_A, self.lora_B, bare(self).weight)

    def _norms(self, A: Tensor, B: Tensor, W2: Tensor) -> Tensor:
        inner = (applied(bare(self), A).t().to(B.dtype) * B).sum(1)
        own = (B @ (A @ A.t()) * B).sum(1)
        return (W2.to(B.dtype) + 2 * self.scale * inner + self.scale**2 * own).clamp(min=0).sqrt()

    def _once(self, name: str, compute, *inputs: Tensor) -> Tensor:
        key = tuple((id(tensor), tensor.data_ptr(), tensor._version) for tensor in inputs)
        if self._known.get(name, (None,))[0] != key:
            self._known[name] = key, compute()
        return self._known[name][1]

    def merged(self, weight: Tensor) -> Tensor:
        share = self.magnitude / self.norms()
        return super().merged(weight) * (share if self.layout.transposed else share[:, None])
