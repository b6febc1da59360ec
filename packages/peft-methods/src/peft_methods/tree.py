"""The module tree of a model as it was before anything was attached: the names under which everything is found.

A wrapper stands in its base's place and lends it its name; what else a method has put into the tree is not seen.
"""

from collections.abc import Iterator

from torch import nn


class Part(nn.Module):
    """One module's share of an attachment. Its parameters are named relative to that module's name.

    `active`: whether it takes part in the forward; a merged part is not active.
    """

    active = False
    unmergeable: str | None = "this method has no weights to merge into; detach() it, or leave it attached"

    def adapter_parameters(self) -> dict[str, nn.Parameter]:
        """The trained parameters by name: what is saved, and nothing else."""
        raise NotImplementedError

    def originals(self) -> list[nn.Parameter]:
        """The model's parameters that the part's stand in for, one for one."""
        return []

    def training_state(self) -> dict:
        """Further tensors, by name, that training needs to go on where it stopped; `save` leaves them out."""
        return {}

    def make_room(self, shapes: dict) -> None:
        """Called before tensors of these shapes are copied in: take them on, if sizes change while training, and start
        afresh in what `training_state` returns."""

    def learning_rate_factor(self, name: str) -> float:
        """By how much the learning rate of the parameter `name` is to be multiplied."""
        return 1.0

    def insert(self) -> None:
        """Take a place in the model, if the part is no `Wrapper`."""

    def remove(self) -> None:
        """Undo `insert`."""

    def switch(self, active: bool) -> None:
        self.active = active

    def merge(self) -> None:
        """Put the part's effect into the base's weights and become inactive."""

    def unmerge(self) -> None:
        """Undo `merge`, bit for bit."""

    def keep_merged(self) -> None:
        """Forget the original weights of a merged part: the model is to stay as it is now."""


class Wrapper(Part):
    """A part that stands in for the module `base` and calls it; what it lacks it answers like the bare module."""

    def __init__(self, base: nn.Module):
        super().__init__()
        self.base = base
        self.training = base.training

    def __getattr__(self, name: str):
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base":
                raise
            return getattr(bare(self), name)


class Companion(Part):
    """A part that is a child of the module `host` and changes what it returns, by `forward(args, kwargs, output)`.

    The host keeps its class, its names and its attributes. A wrapper that comes in the host's place later, or leaves
    it, takes the companion along: what it changes is what the whole place returns, in whichever order things came.
    """

    kind = "companion"

    def __init__(self, host: nn.Module, *others: nn.Module):
        """`others` are further modules that the companion has hooks on."""
        super().__init__()
        self.training = host.training
        self.places = (host, *others)  # in a tuple: the host is no child of its companion

    @property
    def host(self) -> nn.Module:
        return self.places[0]

    def insert(self) -> None:
        taken = self._home._modules
        self._name = next(name for i in range(len(taken) + 1) if (name := f"{self.kind}_{i}") not in taken)
        self._home.add_module(self._name, self)
        self._hook = self.host.register_forward_hook(self._after, with_kwargs=True)

    def remove(self) -> None:
        self._hook.remove()
        delattr(self._home, self._name)

    @property
    def _home(self) -> nn.Module:
        """Whose child this is: not a Sequential's, which would call it as one of its layers, but its last layer's."""
        home = self.host
        while isinstance(home, nn.Sequential):
            home = bare(home[-1])
        return home

    def _after(self, host, args, kwargs, output):
        return self(args, kwargs, output) if self.active else output


def bare(module: nn.Module) -> nn.Module:
    """The model's own module beneath any wrappers."""
    while isinstance(module, Wrapper):
        module = module.base
    return module


def walk(module: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Names and modules, outermost wrappers in the place of their bases; a module reached twice comes twice."""
    yield name, module
    for child_name, child in bare(module)._modules.items():
        if child is not None and not isinstance(child, Companion):
            yield from walk(child, f"{name}.{child_name}" if name else child_name)


def named_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Every module once, under its first name."""
    first_names: dict[nn.Module, str] = {}
    for name, module in walk(model):
        first_names.setdefault(module, name)
    return {name: module for module, name in first_names.items()}


def replace(model: nn.Module, replacements: dict[nn.Module, nn.Module]) -> None:
    """Exchange modules everywhere in the tree, also where one is reached by several names."""
    moving = [part for part in model.modules() if isinstance(part, Companion) and replacements.keys() & {*part.places}]
    for companion in moving:
        companion.remove()
    slots = [(parent, name, child) for parent in model.modules() for name, child in parent._modules.items()]
    for parent, name, child in slots:
        if child in replacements:
            parent._modules[name] = replacements[child]
    for companion in moving:
        companion.places = tuple(replacements.get(place, place) for place in companion.places)
        companion.insert()
