"""The bottleneck beside a module that returns y [..., out]:

    y + s · (f(x W_downᵀ + b_down) W_upᵀ + b_up)

x is y itself in a sequential adapter, and what went into the module (or one before it) in a parallel adapter.
Shapes: x [..., in], W_down [size, in], W_up [out, size]. Parameters are cast to the dtype of x, not x to theirs.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import AdapterError
from ..tree import Companion
from .placements import Site

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "relu": F.relu,
    "swish": F.silu,
    "tanh": torch.tanh,
}
ACTIVATIONS = tuple(_ACTIVATIONS)


class Bottleneck(Companion):
    """The sequential adapter: it reads what the host returns, the first element of it if that is a tuple.

    `down` and `up` are float32 beside a base of fewer than 32 bits, else of the base's dtype.
    """

    kind = "adapter"

    def __init__(self, name: str, site: Site, size: int, activation: str, scale: float, initialization: str):
        super().__init__(*site.places)
        self.name, self.activation, self.scale = name, activation, scale
        base = site.weight
        dtype = base.dtype if base.dtype in (torch.float32, torch.float64) else torch.float32
        self.down = nn.Linear(site.in_features, size, dtype=dtype, device=base.device)
        self.up = nn.Linear(size, site.out_features, dtype=dtype, device=base.device)
        for linear in (self.down, self.up):
            nn.init.zeros_(linear.bias)
        if initialization == "zero":
            nn.init.zeros_(self.up.weight)
        else:
            for linear in (self.down, self.up):
                nn.init.trunc_normal_(linear.weight, std=0.01, a=-0.02, b=0.02)

    def adapter_parameters(self) -> dict[str, nn.Parameter]:
        return dict(self.named_parameters())

    def forward(self, args: tuple, kwargs: dict, output):
        y = self._checked(output[0] if type(output) is tuple and output else output, self.up.out_features, "returns")
        x = self.read(args, kwargs, y)
        y = torch.add(y, self._bottleneck(x).to(y.dtype), alpha=self.scale)
        return (y, *output[1:]) if type(output) is tuple else y

    def read(self, args: tuple, kwargs: dict, y: Tensor) -> Tensor:
        return y

    def _bottleneck(self, x: Tensor) -> Tensor:
        hidden = _ACTIVATIONS[self.activation](_linear(x, self.down))
        return _linear(hidden, self.up)

    def _checked(self, value, width: int, verb: str) -> Tensor:
        if not isinstance(value, Tensor) or not value.is_floating_point():
            raise AdapterError(
                f"{self.name}: {verb} {getattr(value, 'dtype', type(value).__name__)}, where an adapter needs a tensor "
                "of floating point, alone or first in a tuple; name a module inside it in targets"
            )
        if value.shape[-1:] != (width,):
            raise AdapterError(
                f"{self.name}: {verb} {list(value.shape)}, where the linear layers inside let an adapter expect "
                f"[..., {width}]; name one of those in targets"
            )
        return value

    def extra_repr(self) -> str:
        return f"activation={self.activation}, scale={self.scale:g}"


class ParallelBottleneck(Bottleneck):
    """The parallel adapter: it reads the host's first argument, or the one called `hidden_states`."""

    def read(self, args: tuple, kwargs: dict, y: Tensor) -> Tensor:
        x = args[0] if args else kwargs.get("hidden_states", next(iter(kwargs.values()), None))
        return self._checked(x, self.down.in_features, "is given")


class SplitParallelBottleneck(ParallelBottleneck):
    """The parallel adapter of layers that are no module together: it reads what goes into `places[1]`, the first.

    The input waits in the adapter until the last layer has run, so one thread at a time can use the model.
    """

    _input: Tensor | None = None

    def insert(self) -> None:
        super().insert()
        self._input_hook = self.places[1].register_forward_pre_hook(self._before, with_kwargs=True)

    def remove(self) -> None:
        self._input_hook.remove()
        super().remove()

    def _before(self, module, args: tuple, kwargs: dict) -> None:
        if self.active:
            self._input = super().read(args, kwargs, None)

    def read(self, args: tuple, kwargs: dict, y: Tensor) -> Tensor:
        x, self._input = self._input, None
        return x

    def __getstate__(self) -> dict:
        # Checkpointing may stop between the two layers; what waits then is part of a graph and cannot be copied.
        return {**self.__dict__, "_input": None}


def _linear(x: Tensor, linear: nn.Linear) -> Tensor:
    return F.linear(x, linear.weight.to(x.dtype), linear.bias.to(x.dtype))
