"""Positions of tokens counted after the prefix, as if its keys were those of tokens before the first."""

from torch import Tensor, nn

from ..targets import TargetError
from ..tree import Wrapper, bare, named_modules

_NAMES = {"rotary_emb", "wpe", "embed_positions", "position_embeddings"}  # as transformers calls them in decoders


class ShiftedPositions(Wrapper):
    """Stands in for a module that turns positions into embeddings, and is given positions `shift` further on."""

    def __init__(self, base: nn.Module, shift: int):
        super().__init__(base)
        self.shift = shift

    def adapter_parameters(self) -> dict[str, nn.Parameter]:
        return {}

    def forward(self, *args, **kwargs):
        if not self.active:
            return self.base(*args, **kwargs)
        base = bare(self)
        if hasattr(base, "offset"):  # OPT's and BART's: it counts the positions itself, and adds this
            offset, base.offset = base.offset, base.offset + self.shift
            try:
                return self.base(*args, **kwargs)
            finally:
                base.offset = offset
        return self.base(*map(self._shifted, args), **{name: self._shifted(value) for name, value in kwargs.items()})

    def _shifted(self, value):
        positions = isinstance(value, Tensor) and not value.is_floating_point()
        return value + self.shift if positions else value

    def extra_repr(self) -> str:
        return f"shift={self.shift}"


def find_positions(model: nn.Module, attention: list[str]) -> dict[str, nn.Module]:
    """The position embeddings of the decoder that these attention modules are in, by name.

    Raises TargetError where there are none.
    """
    modules = named_modules(model)
    levels = [name.split(".") for name in attention]
    shared = [parts[0] for parts in zip(*levels, strict=False) if len(set(parts)) == 1]
    for length in reversed(range(len(shared) + 1)):
        path = "".join(f"{part}." for part in shared[:length])
        found = [name for name in modules if name.startswith(path) and name.rpartition(".")[2] in _NAMES]
        if found:
            return {name: modules[name] for name in found}
    raise TargetError(f"shift_positions: {type(model).__name__} has none of {', '.join(sorted(_NAMES))}")
