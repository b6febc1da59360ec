"""LoRA: a frozen linear layer plus a trainable product of low rank,

    y = x Wᵀ + b + s · dropout(x) Aᵀ Bᵀ,      s = alpha / rank   (alpha / √rank when rank-stabilized)

with A [rank, in] random and B [out, rank] zero, so that training starts at the base model.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models" (arXiv 2106.09685), section 4.1; rank-stabilized
scaling: Kalajdzievski (arXiv 2312.03732).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .bridge import layout
from .lowrank import add_low_rank, lora_linear, new_seed
from .targets import ALL_LINEAR, Targets, check_targets, find_targets


@dataclass(frozen=True)
class LoRA:
    """The method's options. `targets` are described in `peft_methods.targets`.

    Raises:
        ValueError: rank < 1, dropout outside [0, 1), an alpha that is not finite, or targets that are no targets.
    """

    rank: int = 8
    alpha: float = 16
    dropout: float = 0.0
    targets: Targets = ALL_LINEAR
    rank_stabilized: bool = False

    def __post_init__(self):
        if not isinstance(self.rank, int) or self.rank < 1:
            raise ValueError(f"rank={self.rank!r}: give a whole number of at least 1")
        if not math.isfinite(self.alpha):
            raise ValueError(f"alpha={self.alpha!r}: give a finite number")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout!r}: give a probability in [0, 1)")
        object.__setattr__(self, "targets", check_targets(self.targets))

    @property
    def scale(self) -> float:
        return self.alpha / (math.sqrt(self.rank) if self.rank_stabilized else self.rank)

    def wrap(self, model: nn.Module) -> dict[str, "LoRALinear"]:
        """A wrapper for every target, by module name; the model is left as it is. Raises TargetError."""
        found = find_targets(model, self.targets)
        return {name: LoRALinear(module, self.rank, self.scale, self.dropout) for name, module in found.items()}


class LoRALinear(nn.Module):
    """Stands in for the linear-like module `base`: x [..., in] -> y [..., out].

    While `active` is false it is `base` alone. `lora_A` [rank, in] and `lora_B` [out, rank] are float32 beside a base
    of fewer than 32 bits, else of the base's dtype.
    """

    def __init__(self, base: nn.Module, rank: int, scale: float, dropout: float):
        super().__init__()
        self.base, self.scale, self.dropout = base, scale, dropout
        self.layout = layout(base)
        self.active = True
        self.training = base.training
        dtype = base.weight.dtype if base.weight.dtype in (torch.float32, torch.float64) else torch.float32
        factory = {"dtype": dtype, "device": base.weight.device}
        self.lora_A = nn.Parameter(torch.empty(rank, self.layout.in_features, **factory))
        self.lora_B = nn.Parameter(torch.zeros(self.layout.out_features, rank, **factory))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
        self.register_parameter("original", None)  # the base's weight while merged

    def adapter_parameters(self) -> dict[str, nn.Parameter]:
        return {"lora_A": self.lora_A, "lora_B": self.lora_B}

    # Models read these of their own layers ("what dtype does fc1 compute in?").
    @property
    def weight(self) -> Tensor:
        return self.base.weight

    @property
    def bias(self) -> Tensor | None:
        return self.base.bias

    @property
    def in_features(self) -> int:
        return self.layout.in_features

    @property
    def out_features(self) -> int:
        return self.layout.out_features

    def forward(self, x: Tensor) -> Tensor:
        base = self.base
        if not self.active:
            return base(x)
        low_rank = self.lora_A, self.lora_B, self.scale
        if self.training and self.dropout:
            low_rank += self.dropout, new_seed()
        if self.layout.plain and not (base._forward_hooks or base._forward_pre_hooks):
            W = base.weight.t() if self.layout.transposed else base.weight
            return lora_linear(x, W, base.bias, *low_rank)
        return add_low_rank(base(x), x, *low_rank)

    @torch.no_grad()
    def merge(self) -> None:
        """Put W + s · B A in the base; W itself is kept aside, so that `unmerge` restores every bit."""
        W = self.original = self.base.weight
        delta = self.scale * (self.lora_B @ self.lora_A)
        merged = W.to(delta.dtype) + (delta.t() if self.layout.transposed else delta)
        self.base.weight = nn.Parameter(merged.to(W.dtype), requires_grad=W.requires_grad)

    def unmerge(self) -> None:
        self.base.weight, self.original = self.original, None

    def extra_repr(self) -> str:
        return f"rank={len(self.lora_A)}, scale={self.scale:g}, dropout={self.dropout:g}"
