"""An attention module with a prefix: softmax(q [K_prefix; K]ᵀ · scale + mask) [V_prefix; V].

The prefix is there in the attention alone. What surrounds it, positions, masks and the cache, does not know of it, and
neither does gradient checkpointing.
"""

import torch
from torch import Tensor, nn

from ..errors import AdapterError
from ..tree import Wrapper, bare
from .states import PrefixStates, ReparameterizedStates


class PrefixAttention(Wrapper):
    """Base of the wrappers, one for each way in which an attention module lets keys and values in.

    `prefix` is float32 beside a base of fewer than 32 bits, else of the base's dtype.
    """

    def __init__(self, name: str, base: nn.Module, length: int, heads: int, head_dim: int, hidden: int | None):
        super().__init__(base)
        self.name, self.length = name, length
        weight = next(base.parameters())
        dtype = weight.dtype if weight.dtype in (torch.float32, torch.float64) else torch.float32
        factory = {"dtype": dtype, "device": weight.device}
        if hidden is None:
            self.prefix = PrefixStates(length, heads, head_dim, **factory)
        else:
            self.prefix = ReparameterizedStates(length, heads, head_dim, hidden, **factory)
        self.recording = False
        self.recorded: tuple[Tensor, Tensor, Tensor] | None = None

    def adapter_parameters(self) -> dict[str, nn.Parameter]:
        return dict(self.prefix.named_parameters(prefix="prefix"))

    def forward(self, *args, **kwargs):
        parts, inner = [], self
        while isinstance(inner, PrefixAttention):  # what other attachments have put on this module too
            parts += [inner] * (inner.active or inner.recording)
            inner = inner.base
        if not parts:
            return self.base(*args, **kwargs)
        return self.attend(bare(self), Prefixes(parts), *args, **kwargs)

    def attend(self, host: nn.Module, prefixes: "Prefixes", *args, **kwargs):
        """What the module `host` returns with the prefixes in it."""
        raise NotImplementedError

    def states_like(self, key: Tensor, value: Tensor) -> list[Tensor]:
        """Keys and values of the prefix [batch, heads, length, head_dim] for those of the module."""
        states = []
        for prefix, real in zip(self.prefix(), (key, value), strict=True):
            batch, heads, _, head_dim = real.shape
            if prefix.shape[1:] != (heads, head_dim):
                raise AdapterError(
                    f"{self.name}: has {heads} heads of {head_dim} in its keys or values, where a prefix was made for "
                    f"{prefix.shape[1]} of {prefix.shape[2]}; leave it out of the targets"
                )
            states.append(prefix.to(real.dtype).transpose(0, 1).expand(batch, -1, -1, -1))
        return states

    def extra_repr(self) -> str:
        return f"length={self.length}"


class Prefixes:
    """The prefixes that take part in a call: `length` of them in front, the module's own keys behind them."""

    def __init__(self, parts: list[PrefixAttention]):
        self.active = [part for part in parts if part.active]
        self.recording = [part for part in parts if part.recording and part.recorded is None]
        self.name = parts[0].name
        self.length = sum(part.length for part in self.active)

    def extended(self, key: Tensor, value: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Keys and values [batch, heads, S, head_dim] and mask [..., S] with the prefixes in front, which all see.

        In the mask True, 0 and, where it has two dimensions, 1 is what is seen.
        """
        for part in self.recording:
            part.recorded = key.detach(), value.detach(), _seen(mask, key)
        if not self.active:
            return key, value, mask
        keys, values = zip(*(part.states_like(key, value) for part in self.active), strict=True)
        if mask is not None:
            seen = 1.0 if mask.dtype == torch.bool or mask.ndim == 2 else 0.0
            mask = nn.functional.pad(mask, (self.length, 0), value=seen)
        return torch.cat([*keys, key], dim=2), torch.cat([*values, value], dim=2), mask


def _seen(mask: Tensor | None, key: Tensor) -> Tensor:
    """[batch, S]: whether any query sees the key at this position; what none sees is padding."""
    if mask is None:
        seen = torch.ones(1, key.shape[2], dtype=torch.bool, device=key.device)
    elif mask.ndim == 2:
        seen = mask.bool()
    else:
        seen = (mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2).any(2).any(1)
    return seen.expand(len(key), -1)
