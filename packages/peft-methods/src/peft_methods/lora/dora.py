"""DoRA: LoRA of the weight's direction beside a trained magnitude of each output,

    y = m / ‖W + s B A‖ ∘ (x Wᵀ + s · dropout(x) Aᵀ Bᵀ) + b

where the norms are of rows and count as constants in the gradient. W + s B A is never formed:

    ‖W + s B A‖² = ‖W‖² + 2 s ⟨W, B A⟩ + s² ‖B A‖²,      ⟨W, B A⟩ = Σ (W Aᵀ) ∘ B,      ‖B A‖² = Σ (B A Aᵀ) ∘ B

Liu et al. (arXiv 2402.09353), equations 5 and 11.
"""

import torch
from torch import Tensor, nn

from ..targets import TargetError
from ..tree import Wrapper, bare
from .linear import LoRALinear
from .weights import applied, squared_norms


class DoRALinear(LoRALinear):
    """As `LoRALinear`, with `magnitude` [out], which starts as the norms of W's rows.

    Raises TargetError on a layer that others are on: whether those count into the norm would depend on what is merged.
    """

    rescales = True

    def __init__(self, base: nn.Module, rank: int, scale: float, dropout: float):
        if isinstance(base, Wrapper):
            raise TargetError("DoRA has to come first on a layer; detach what is on it and attach that again after")
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
        z = self._answer(self.base, x, None)
        # As a change to 1, which the bits of a bfloat16 resolve finely; of the ratio itself they resolve 0.8 %.
        change = (self.magnitude / self.norms() - 1).to(z.dtype)
        y = torch.addcmul(z, z, change)
        return y if self.base.bias is None else y.add_(self.base.bias)

    def norms(self) -> Tensor:
        """Of the rows of W + s B A, [out]. Where nothing trains they are computed once for the same A, B and W."""
        training = self.training or torch.is_grad_enabled()
        with torch.no_grad():
            W2 = self._once("weight", lambda: squared_norms(bare(self)), bare(self).weight)
            if training:  # there are optimizers whose steps leave no trace in a tensor's version
                self._known.pop("norms", None)
                return self._norms(W2)
            return self._once("norms", lambda: self._norms(W2), self.lora_A, self.lora_B, bare(self).weight)

    def _norms(self, W2: Tensor) -> Tensor:
        A, B = self.factors()
        inner = (applied(bare(self), A).t().to(B.dtype) * B).sum(1)
        own = (B @ (A @ A.t()) * B).sum(1)
        return (W2.to(B.dtype) + 2 * self.scale * inner + self.scale**2 * own).clamp(min=0).sqrt()

    def _once(self, name: str, compute, *inputs: Tensor) -> Tensor:
        if any(tensor.is_inference() for tensor in inputs):  # these have no version
            return compute()
        key = tuple((id(tensor), tensor.data_ptr(), tensor._version) for tensor in inputs)
        if self._known.get(name, (None,))[0] != key:
            self._known[name] = key, compute()
        return self._known[name][1]

    def merged(self, weight: Tensor) -> Tensor:
        share = self.magnitude / self.norms()
        return super().merged(weight) * (share if self.layout.transposed else share[:, None])
