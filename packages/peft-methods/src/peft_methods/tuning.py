"""Fine-tuning of the model's own parameters: all of them, the biases, or the norms.

Baselines without anything added. BitFit: Ben Zaken et al. (arXiv 2106.10199); norm-only tuning: Frankle, Schwab and
Morcos (arXiv 2003.00152), Zhao et al. (arXiv 2312.11420) for multimodal models.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from .method import Method
from .targets import TargetError, check_pattern
from .trained import Trained, named_slots
from .tree import Part


@dataclass(frozen=True)
class _Tuning(Method):
    """`within`: a regular expression of the parameter names to consider, matched against the whole name.

    The originals are kept beside the trained copies: memory for one more copy of what is trained.

    Raises:
        ValueError: `within` is no regular expression.
    """

    within: str = ".*"

    def __post_init__(self):
        check_pattern(self.within)

    def parts(self, model: nn.Module) -> dict[str, Part]:
        chosen = self._chooser(model)
        names = [name for name, module, slot, _ in named_slots(model) if chosen(module, slot)]
        names = [name for name in names if re.fullmatch(self.within, name)]
        if not names:
            raise TargetError(f"{self}: matches no parameter of the model")
        return {"": Trained(model, names)}

    def _chooser(self, model: nn.Module) -> Callable[[nn.Module, str], bool]:
        raise NotImplementedError


class FullFineTuning(_Tuning):
    """Every parameter. Quantized ones cannot be trained: name the others by `within`."""

    def _chooser(self, model):
        return lambda module, slot: True


class BitFit(_Tuning):
    """Every bias: the parameters whose names end in "bias"."""

    def _chooser(self, model):
        return lambda module, slot: slot.endswith("bias")


class NormTuning(_Tuning):
    """Weights and biases of the normalisation layers, whichever class they are of: known by "norm" in its name."""

    def _chooser(self, model):
        return lambda module, slot: "norm" in type(module).__name__.lower()
