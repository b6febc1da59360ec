"""Bottleneck adapters: small MLPs of two layers put into a frozen transformer,

    y + s · (f(x W_downᵀ + b_down) W_upᵀ + b_up)          W_down [size, width], W_up [width, size]

"houlsby"   x = y, the output of every attention and MLP      Houlsby et al. (arXiv 1902.00751), section 2.1
"pfeiffer"  x = y, the output of every MLP                    Pfeiffer et al. (arXiv 2005.00247), section 3
"parallel"  y the output and x the input of every MLP, s = 4  He et al. (arXiv 2110.04366), section 4

y is taken before the residual sum. With W_up zero, training starts at the base model.
"""

import math
import re
from dataclasses import dataclass

from torch import nn

from ..method import Method
from ..targets import TargetError, Targets, check_pattern, check_targets, find_targets
from .bottleneck import ACTIVATIONS, Bottleneck, ParallelBottleneck, SplitParallelBottleneck
from .placements import PLACEMENTS, Site, find_sites, site_at

AUTO = "auto"


@dataclass(frozen=True)
class Adapter(Method):
    """The method's options.

    `placement`: "houlsby", "pfeiffer" or "parallel". `size`: features of the bottleneck; width / `reduction` if None.
    `activation`: "relu", "gelu", "swish" or "tanh". `scale`: s; 4 in parallel and 1 otherwise if None.
    `initialization`: "zero" is W_up zero and W_down Kaiming-uniform, "normal" is both from a normal distribution of
    standard deviation 0.01, cut at two of it, which is Houlsby et al.'s and starts near the base model, not at it.
    `targets`: "auto" finds the outputs of attention and MLP (`peft_methods.adapter.placements`); a list of names or
    `re:` puts an adapter on the output of each module named, sequential or parallel. `within`: a regular expression
    that the whole name of a module must match to get an adapter.

    Raises:
        ValueError: an option is unknown, below its range or no regular expression.
    """

    placement: str = "houlsby"
    reduction: float = 16
    size: int | None = None
    activation: str = "relu"
    scale: float | None = None
    initialization: str = "zero"
    targets: Targets = AUTO
    within: str = ".*"

    def __post_init__(self):
        choices = {"placement": PLACEMENTS, "activation": ACTIVATIONS, "initialization": ("zero", "normal")}
        for option, known in choices.items():
            if getattr(self, option) not in known:
                raise ValueError(f"{option}={getattr(self, option)!r}: give one of {', '.join(known)}")
        if not self.reduction > 0:
            raise ValueError(f"reduction={self.reduction!r}: give a number above 0")
        if self.size is not None and (not isinstance(self.size, int) or self.size < 1):
            raise ValueError(f"size={self.size!r}: give a whole number of at least 1, or None")
        if self.scale is None:
            object.__setattr__(self, "scale", 4.0 if self.placement == "parallel" else 1.0)
        if not math.isfinite(self.scale):
            raise ValueError(f"scale={self.scale!r}: give a finite number")
        if self.targets != AUTO:
            object.__setattr__(self, "targets", check_targets(self.targets))
        check_pattern(self.within)

    def parts(self, model: nn.Module) -> dict[str, Bottleneck]:
        sites = self._sites(model)
        inside = {name: site for name, site in sites.items() if re.fullmatch(self.within, name)}
        if not inside:
            raise TargetError(f"within={self.within!r}: matches none of {', '.join(list(sites)[:4])}, …")
        return {name: self._part(name, site) for name, site in inside.items()}

    def _sites(self, model: nn.Module) -> dict[str, Site]:
        if self.targets == AUTO:
            if sites := find_sites(model, self.placement):
                return sites
            raise TargetError(
                f"targets={AUTO!r}: finds no transformer blocks with attention and MLP in {type(model).__name__}; give "
                "a list with the names of the modules on whose outputs to put adapters"
            )
        kind = "module with linear layers" + (" or norm" if self.placement == "parallel" else ", norm or embedding")
        found = find_targets(model, self.targets, lambda module: site_at(module, self.placement) is not None, kind)
        return {name: site_at(module, self.placement) for name, module in found.items()}

    def _part(self, name: str, site: Site) -> Bottleneck:
        size = self.size or max(1, int(site.out_features / self.reduction))
        options = size, self.activation, self.scale, self.initialization
        if site.source is None:
            return Bottleneck(name, site, *options)
        return (ParallelBottleneck if site.source is site.host else SplitParallelBottleneck)(name, site, *options)
