"""Parameters of the model itself, trained in copies, so that the originals are always at hand."""

from collections.abc import Iterable

from torch import nn

from .errors import AdapterError
from .tree import Part, bare, walk


class Trained(Part):
    """The model's parameters of the given names, as one part at the model's root.

    While it is active, trained copies are in the places of the originals; otherwise the original objects themselves
    are, so that the base model is there bit for bit. A parameter that two modules share stays shared.

    Raises:
        AdapterError: a parameter is quantized, or not of a floating-point dtype.
    """

    unmergeable = None  # there is nothing to do: the copies are the weights

    def __init__(self, model: nn.Module, names: Iterable[str]):
        super().__init__()
        names = set(names)
        self._slots: dict[str, list[tuple[nn.Module, str]]] = {}  # by the parameter's first name
        self._originals: dict[str, nn.Parameter] = {}
        first_names: dict[nn.Parameter, str] = {}
        for name, module, slot, parameter in named_slots(model):
            first = first_names.setdefault(parameter, name)
            self._slots.setdefault(first, []).append((module, slot))
            self._originals.setdefault(first, parameter)
        wanted = {first_names[parameter] for name, _, _, parameter in named_slots(model) if name in names}
        self._slots = {name: slots for name, slots in self._slots.items() if name in wanted}
        self._originals = {name: self._originals[name] for name in self._slots}
        for name, original in self._originals.items():
            if not original.is_floating_point() or type(original) is not nn.Parameter:
                kind = str(original.dtype).removeprefix("torch.")
                raise AdapterError(f"{name}: {kind} {type(original).__name__} cannot be trained; leave it out")
        self._copies = {name: nn.Parameter(original.detach().clone()) for name, original in self._originals.items()}

    def adapter_parameters(self) -> dict[str, nn.Parameter]:
        return self._copies

    def originals(self) -> list[nn.Parameter]:
        return list(self._originals.values())

    def switch(self, active: bool) -> None:
        self.active = active
        coming, going = (self._copies, self._originals) if active else (self._originals, self._copies)
        for name, parameter in coming.items():
            # Since then the model may have gone to another device or dtype, and with it only what was in its places.
            parameter.data = parameter.data.to(going[name])
            for module, slot in self._slots[name]:
                module._parameters[slot] = parameter


def named_slots(model: nn.Module):
    """Every place of a parameter in the model: (full name, module, name in the module, parameter)."""
    for path, module in walk(model):
        for slot, parameter in bare(module)._parameters.items():
            if parameter is not None:
                yield f"{path}.{slot}" if path else slot, bare(module), slot, parameter
