"""LoRA: a frozen linear layer plus a trainable product of low rank,

    y = x Wᵀ + b + s · dropout(x) Aᵀ Bᵀ,      s = alpha / rank   (alpha / √rank when rank-stabilized)

with A [rank, in] random and B [out, rank] zero, so that training starts at the base model.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models" (arXiv 2106.09685), section 4.1; rank-stabilized
scaling: Kalajdzievski (arXiv 2312.03732).
"""

import math
from dataclasses import dataclass

from torch import nn

from ..method import Method
from ..targets import ALL_LINEAR, Targets, check_targets, find_targets
from .linear import LoRALinear


@dataclass(frozen=True)
class LoRA(Method):
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

    def parts(self, model: nn.Module) -> dict[str, LoRALinear]:
        found = find_targets(model, self.targets)
        return {name: LoRALinear(module, self.rank, self.scale, self.dropout) for name, module in found.items()}
