"""LoRA: a frozen layer plus a trainable product of low rank,

    y = x Wᵀ + b + s · dropout(x) Aᵀ Bᵀ,      s = alpha / rank   (alpha / √rank when rank-stabilized)

with A [rank, in] random and B [out, rank] zero, so that training starts at the base model.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models" (arXiv 2106.09685), section 4.1; rank-stabilized
scaling: Kalajdzievski (arXiv 2312.03732); DoRA: Liu et al. (arXiv 2402.09353); PiSSA: Meng et al. (arXiv 2404.02948);
OLoRA: Büyükakyüz (arXiv 2406.01775); LoRA+, another learning rate for B: Hayou et al. (arXiv 2402.12354).
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from torch import nn

from ..method import Method
from ..targets import ALL_LINEAR, TargetError, Targets, check_targets, find_targets, is_linear, matcher
from ..trained import Trained, named_slots
from ..tree import Part, bare, walk
from .conv import LoRAConv2d
from .dora import DoRALinear
from .embedding import LoRAEmbedding
from .initialization import INITIALIZATIONS, initialize
from .linear import LoRALinear

BIASES = ("none", "all", "targets")


@dataclass(frozen=True)
class LoRA(Method):
    """The method's options.

    `targets` are described in `peft_methods.targets`; besides linear layers, embeddings and 2-D convolutions can be
    named. `rank_pattern` and `alpha_pattern` hold other values for some of them, by regular expressions that match the
    end of a module's name at a dot; the first that does counts. `initialization` is "zeros" (of B), "gaussian" (A),
    "pissa" or "olora". `bias` are the biases to train as well: "none", "all", or those of the "targets";
    `train_also` are modules to train whole, given like `targets`; what they share with others stays shared, and
    targets inside them are left out. `learning_rate_ratio` is B's learning rate over that of all others, for
    `Attachment.parameter_groups`.

    Raises:
        ValueError: an option has a value that makes no sense.
    """

    rank: int = 8
    alpha: float = 16
    dropout: float = 0.0
    targets: Targets = ALL_LINEAR
    rank_stabilized: bool = False
    dora: bool = False
    initialization: str = "zeros"
    rank_pattern: Mapping[str, int] = field(default_factory=dict, hash=False)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict, hash=False)
    bias: str = "none"
    train_also: Targets = ()
    learning_rate_ratio: float = 1.0

    _linear = LoRALinear

    def __post_init__(self):
        for rank in (self.rank, *self.rank_pattern.values()):
            if not isinstance(rank, int) or rank < 1:
                raise ValueError(f"rank={rank!r}: give a whole number of at least 1")
        for alpha in (self.alpha, *self.alpha_pattern.values()):
            if not math.isfinite(alpha):
                raise ValueError(f"alpha={alpha!r}: give a finite number")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout!r}: give a probability in [0, 1)")
        for option, known in (("initialization", INITIALIZATIONS), ("bias", BIASES)):
            if getattr(self, option) not in known:
                raise ValueError(f"{option}={getattr(self, option)!r}: known are {', '.join(known)}")
        if not 0 < self.learning_rate_ratio < math.inf:
            raise ValueError(f"learning_rate_ratio={self.learning_rate_ratio!r}: give a positive number")
        for pattern in (*self.rank_pattern, *self.alpha_pattern):
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"pattern {pattern!r}: not a regular expression ({error})") from None
        object.__setattr__(self, "targets", check_targets(self.targets))
        if self.train_also == ALL_LINEAR:
            raise ValueError(f"train_also={ALL_LINEAR!r}: give a list of names or 're:<regex>'")
        object.__setattr__(self, "train_also", check_targets(self.train_also) if self.train_also else ())

    def parts(self, model: nn.Module) -> dict[str, Part]:
        whole = tuple(f"{name}." for name in self.trained_whole(model))
        found = find_targets(model, self.targets, fits_lora, "linear layer, embedding or 2-D convolution")
        names = [name for name in found if not f"{name}.".startswith(whole)]
        if not names:
            raise TargetError(f"train_also={self.train_also}: no target is left; use FullFineTuning for these modules")
        for pattern in (*self.rank_pattern, *self.alpha_pattern):
            if not any(map(matches(pattern), names)):
                raise TargetError(f"pattern {pattern!r} matches none of the targets; leave it out or correct it")
        parts: dict[str, Part] = {}
        for name in names:
            try:
                parts[name] = self._part(name, found[name])
            except ValueError as error:
                raise TargetError(f"{name}: {error}") from None
        also = self.also_trained(model, names)
        return {**parts, "": Trained(model, also)} if also else parts

    def scale_of(self, rank: int, alpha: float) -> float:
        return alpha / (math.sqrt(rank) if self.rank_stabilized else rank)

    def _part(self, name: str, module: nn.Module) -> LoRALinear | LoRAEmbedding | LoRAConv2d:
        rank = _first(self.rank_pattern, name, self.rank)
        options = rank, self.scale_of(rank, _first(self.alpha_pattern, name, self.alpha)), self.dropout
        if is_linear(module):
            part = (DoRALinear if self.dora else self._linear)(module, *options)
        elif self.dora or self.initialization in ("pissa", "olora"):
            kind = type(bare(module)).__name__
            raise TargetError(f"DoRA, PiSSA and OLoRA go on linear layers only, not on a {kind}; leave it out")
        else:
            part = (LoRAEmbedding if isinstance(bare(module), nn.Embedding) else LoRAConv2d)(module, *options)
        part.learning_rate_ratio = self.learning_rate_ratio
        initialize(part, self.initialization)
        return part

    def trained_whole(self, model: nn.Module) -> list[str]:
        """Names of the modules that `train_also` names. Raises TargetError where an entry matches none."""
        if not self.train_also:
            return []
        matching = matcher(self.train_also)
        whole = {name: entries for name, _ in walk(model) if name and (entries := matching(name))}
        for entry in [self.train_also] if isinstance(self.train_also, str) else self.train_also:
            if not any(entry in entries for entries in whole.values()):
                raise TargetError(f"train_also entry {entry!r} matches no module; correct it or leave it out")
        return list(whole)

    def also_trained(self, model: nn.Module, targets: Iterable[str]) -> list[str]:
        """Names of the parameters of the model itself that are trained beside LoRA on `targets`."""
        whole = tuple(f"{name}." for name in self.trained_whole(model))
        biases = {"none": set(), "all": {path for path, _ in walk(model)}, "targets": set(targets)}[self.bias]
        return [
            name
            for name, _, slot, _ in named_slots(model)
            if name.startswith(whole) or (slot == "bias" and name.removesuffix(slot).removesuffix(".") in biases)
        ]


def fits_lora(module: nn.Module) -> bool:
    return is_linear(module) or isinstance(bare(module), nn.Embedding | nn.Conv2d)


def matches(pattern: str):
    """Whether a module's name ends, at a dot, in what the regular expression describes: a function of the name."""
    compiled = re.compile(rf"(.*\.)?({pattern})$")
    return lambda name: compiled.match(name) is not None


def _first(patterns: Mapping, name: str, default):
    return next((value for pattern, value in patterns.items() if matches(pattern)(name)), default)
