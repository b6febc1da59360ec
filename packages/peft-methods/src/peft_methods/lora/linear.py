"""LoRA beside a linear layer."""

import math

import torch
from torch import Tensor, nn

from ..bridge import layout
from ..tree import Wrapper, bare
from .lowrank import add_low_rank, lora_linear, new_seed


class LoRALinear(Wrapper):
    """Stands in for the linear-like module `base`: x [..., in] -> y [..., out].

    While `active` is false it is `base` alone. `lora_A` [rank, in] and `lora_B` [out, rank] are float32 beside a base
    of fewer than 32 bits, else of the base's dtype.
    """

    def __init__(self, base: nn.Module, rank: int, scale: float, dropout: float):
        super().__init__(base)
        self.scale, self.dropout = scale, dropout
        self.layout = layout(base)
        self.probe = None  # see `lora_linear`
        dtype = base.weight.dtype if base.weight.dtype in (torch.float32, torch.float64) else torch.float32
        factory = {"dtype": dtype, "device": base.weight.device}
        self.lora_A = nn.Parameter(torch.empty(rank, self.layout.in_features, **factory))
        self.lora_B = nn.Parameter(torch.zeros(self.layout.out_features, rank, **factory))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
        self.register_parameter("original", None)  # the base's weight while merged

    def adapter_parameters(self) -> dict[str, nn.Parameter]:
        return {"lora_A": self.lora_A, "lora_B": self.lora_B}

    def forward(self, x: Tensor) -> Tensor:
        base = self.base
        if not self.active:
            return base(x)
        seed = new_seed() if self.training and self.dropout else None
        low_rank = self.lora_A, self.lora_B, self.scale, self.dropout, seed, self.probe
        if self.layout.plain and not (base._forward_hooks or base._forward_pre_hooks):
            W = base.weight.t() if self.layout.transposed else base.weight
            return lora_linear(x, W, base.bias, *low_rank)
        return add_low_rank(base(x), x, *low_rank)

    @property
    def unmergeable(self) -> str | None:
        if self.layout.quantized:
            return f"a quantized {type(bare(self)).__name__} cannot be merged; load the base model unquantized"

    @torch.no_grad()
    def merge(self) -> None:
        """Put W + s · B A in the base; W itself is kept aside, so that `unmerge` restores every bit."""
        base = bare(self)
        W = self.original = base.weight
        delta = self.scale * (self.lora_B @ self.lora_A)
        merged = W.to(delta.dtype) + (delta.t() if self.layout.transposed else delta)
        base.weight = nn.Parameter(merged.to(W.dtype), requires_grad=W.requires_grad)
        self.active = False

    def unmerge(self) -> None:
        bare(self).weight, self.original = self.original, None
        self.active = True

    def keep_merged(self) -> None:
        bare(self).weight.requires_grad_(self.original.requires_grad)
        self.original = None

    def extra_repr(self) -> str:
        return f"rank={len(self.lora_A)}, scale={self.scale:g}, dropout={self.dropout:g}"
