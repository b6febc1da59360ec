"""Prefix tuning: trained keys and values in front of those that attention computes,

    softmax(q [P_K; K]ᵀ / √d) [P_V; V],      P_K, P_V [length, heads, d] for every attention module.

Li and Liang, "Prefix-Tuning: Optimizing Continuous Prompts for Generation" (arXiv 2101.00190).
"""

import re
from dataclasses import dataclass

from torch import nn

from ..method import Method
from ..targets import TargetError, Targets, check_pattern, check_targets, find_targets
from ..tree import Part
from .attention import PrefixAttention
from .positions import ShiftedPositions, find_positions
from .sites import KIND, causal_attention, part_for, shape_of

AUTO = "auto"


@dataclass(frozen=True)
class Prefix(Method):
    """The method's options.

    `length`: tokens of the prefix. `reparameterization`: hidden features of the network that makes the keys and values
    while training, one per attention module; None trains them directly. `targets`: "auto" is the causal self-attention
    of the language model (`peft_methods.prefix.sites`); a list of names or `re:` puts a prefix on each attention module
    named, of encoders and cross-attention too. `within`: a regular expression that the whole name of a module must
    match. `shift_positions`: count the positions of tokens from `length` instead of 0, as if the prefix were tokens;
    PEFT does, and a prefix from its files needs it.

    Raises:
        ValueError: a number below 1, or targets or `within` that fit no model.
    """

    length: int = 20
    reparameterization: int | None = None
    targets: Targets = AUTO
    within: str = ".*"
    shift_positions: bool = False

    def __post_init__(self):
        if not isinstance(self.length, int) or self.length < 1:
            raise ValueError(f"length={self.length!r}: give a whole number of at least 1")
        hidden = self.reparameterization
        if hidden is not None and (not isinstance(hidden, int) or hidden < 1):
            raise ValueError(f"reparameterization={hidden!r}: give a whole number of at least 1, or None")
        if self.targets != AUTO:
            object.__setattr__(self, "targets", check_targets(self.targets))
        check_pattern(self.within)

    def parts(self, model: nn.Module) -> dict[str, Part]:
        parts: dict[str, Part] = {name: self._part(name, module) for name, module in self._attention(model).items()}
        if self.shift_positions:
            positions = find_positions(model, list(parts))
            parts |= {name: ShiftedPositions(module, self.length) for name, module in positions.items()}
        return parts

    def _attention(self, model: nn.Module) -> dict[str, nn.Module]:
        if self.targets == AUTO:
            found = causal_attention(model)
        else:
            found = find_targets(model, self.targets, lambda module: part_for(module) is not None, KIND)
        inside = {name: module for name, module in found.items() if re.fullmatch(self.within, name)}
        if not inside:
            raise TargetError(f"within={self.within!r}: matches none of {', '.join(list(found)[:4])}, …")
        return inside

    def _part(self, name: str, module: nn.Module) -> PrefixAttention:
        return part_for(module)(name, module, self.length, *shape_of(module), self.reparameterization)
