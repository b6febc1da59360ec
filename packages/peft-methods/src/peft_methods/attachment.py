"""`attach` freezes a model and puts a method's parts into it; the `Attachment` is what knows about them.

Nothing is found again by searching names: the attachment holds its parts, and a part names its own parameters. So what
trains, what is counted and what is saved is one and the same set.

A model may carry several attachments, each of them put on what was there before. The model holds the list, so that a
copy of the model carries copies of them: `attachments(copy)`.
"""

import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn

from . import formats
from .bridge import keep_differentiable, parameter_count
from .carried import Carried
from .errors import AdapterError, check_keys
from .files import read_adapter, write_adapter
from .method import Method
from .tree import Part, Wrapper, replace


def attach(model: nn.Module, method: Method) -> "Attachment":
    """Freeze every parameter of `model`, put `method`'s parts in place and return the handle to them.

    What the model carries already stays, frozen; `requires_grad_` and `alone` of the attachments switch between them.

    Raises:
        TargetError: an entry of the method's targets matches nothing, or something that the method cannot go on.
        AdapterError: the model cannot carry the method. The model is unchanged in both cases.
    """
    return Attachment(model, method)


def attachments(model: nn.Module) -> list["Attachment"]:
    """What `attach` and `load` put on this model, oldest first."""
    return list(model._carried.attachments) if hasattr(model, "_carried") else []


def load(model: nn.Module, folder: str | PathLike, strict: bool = True) -> "Attachment":
    """Attach the adapter that `Attachment.save` or Hugging Face PEFT wrote to `folder`; it is trainable again.

    Raises:
        AdapterError: the folder holds no adapter, its configuration asks for what is not supported, or its keys or
            shapes are not the model's. With `strict=False` keys without a place in the model, and modules without
            keys, are left out. The model is unchanged then.
    """
    files = read_adapter(folder)
    try:
        method, state = formats.read(files, model, strict)
    except AdapterError as error:
        raise AdapterError(f"{folder}: {error}") from None
    attachment = attach(model, method)
    try:
        attachment.load_state_dict(state, strict)
    except AdapterError as error:
        attachment.detach()
        raise AdapterError(f"{folder}: {error}") from None
    return attachment


def from_peft(folder: str | PathLike) -> Method:
    """The method that Hugging Face PEFT wrote to `folder`, to start anew with: `attach(model, from_peft(folder))`.

    Raises:
        AdapterError: in one line, what about it cannot be represented here.
    """
    try:
        return formats.read_method(read_adapter(folder))
    except AdapterError as error:
        raise AdapterError(f"{folder}: {error}") from None


class Attachment:
    """A method's parts in a model. Made by `attach` and `load`.

    Attributes: `model`, `method`, `modules` (the parts by the name of the module each is at), `merged`.
    """

    def __init__(self, model: nn.Module, method: Method):
        self.model, self.method = model, method
        self._carried: Carried = model._carried if hasattr(model, "_carried") else Carried(model)
        self.active = self.merged = self._attached = False
        keep_differentiable(model)
        with self._carried.unmerged():
            self.modules: dict[str, Part] = method.parts(model)
            self._check_originals()
            self._insert()
        self._switch(True)

    def _check_originals(self) -> None:
        """A parameter of the model can be trained in one attachment's copy only, and that must be what is called."""
        mine = _originals(self)
        if mine and self._carried.merged:
            raise AdapterError(f"{self.method}: others are merged into the weights; unmerge() or detach() them first")
        for other in self._carried.attachments:
            twice = mine & (_originals(other) | {id(parameter) for parameter in other.parameters()})
            if names := [name for name, parameter in self.model.named_parameters() if id(parameter) in twice]:
                raise AdapterError(f"{', '.join(names[:3])}: trained by another attachment already; detach() it first")

    def _insert(self) -> None:
        # By place, not by parameter: there may be others in these places when it is time to put the flags back.
        self._was_trainable = {
            (module, name): parameter.requires_grad
            for module in self.model.modules()
            for name, parameter in module._parameters.items()
            if parameter is not None
        }
        self._total = sum(parameter_count(parameter) for parameter in self.model.parameters())
        for other in self._carried.attachments:
            other.requires_grad_(False)
        self.model.requires_grad_(False)
        replace(self.model, {part.base: part for part in self.modules.values() if isinstance(part, Wrapper)})
        for part in self.modules.values():
            part.insert()
        self._carried.add(self)
        self._attached = True

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The method's parameters: the name of the module each belongs to, and its own."""
        for path, part in self.modules.items():
            for name, parameter in part.adapter_parameters().items():
                yield f"{path}.{name}" if path else name, parameter

    def parameters(self) -> list[nn.Parameter]:
        return [parameter for _, parameter in self.named_parameters()]

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """The parameters in groups for an optimizer, where the method gives some another learning rate (LoRA+)."""
        groups: dict[float, list[nn.Parameter]] = {}
        for part in self.modules.values():
            for name, parameter in part.adapter_parameters().items():
                groups.setdefault(part.learning_rate_factor(name), []).append(parameter)
        return [{"params": group, "lr": learning_rate * factor} for factor, group in groups.items()]

    def requires_grad_(self, requires_grad: bool = True) -> "Attachment":
        """Train the attachment's parameters, or freeze them: for one among several on a model."""
        for parameter in self.parameters():
            parameter.requires_grad_(requires_grad)
        return self

    @property
    def trainable(self) -> int:
        """Number of the method's parameters."""
        return sum(parameter.numel() for parameter in self.parameters())

    @property
    def total(self) -> int:
        """Number of parameters of the model, the attachment's included; 4-bit ones are counted unpacked."""
        replaced = sum(original.numel() for part in self.modules.values() for original in part.originals())
        return self._total - replaced + self.trainable

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors that `save` writes; the file adds a header of some 150 bytes per tensor."""
        return sum(parameter.nbytes for parameter in self.parameters())

    def summary(self) -> str:
        """What was attached where, as text: method, modules, parameters, size on disk."""
        kinds = Counter(re.sub(r"\b\d+\b", "*", path) for path in self.modules if path)
        modules = f"{len(self.modules):,}: " + ", ".join(f"{count} x {kind}" for kind, count in kinds.items())
        return "\n".join([
            f"{self.method}",
            f"modules     {modules if kinds else 'none added'}",
            f"trainable   {self.trainable:,} of {self.total:,} parameters ({self.trainable / self.total:.3%})",
            f"on disk     {self.nbytes / 1e3:,.1f} kB",
        ])  # fmt: skip

    def without_gradient(self) -> list[str]:
        """Names of trainable parameters that have no gradient: after a backward pass, those that cannot learn."""
        trainable = ((name, parameter) for name, parameter in self.named_parameters() if parameter.requires_grad)
        return [name for name, parameter in trainable if parameter.grad is None]

    def state_dict(self) -> dict[str, Tensor]:
        """The attachment's own tensors by name, and what training needs besides; like torch's, they share memory."""
        state = {name: parameter.detach() for name, parameter in self.named_parameters()}
        for path, part in self.modules.items():
            state |= {f"{path}.{name}": tensor for name, tensor in part.training_state().items()}
        return state

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor], strict: bool = True) -> None:
        """Copy tensors in. Raises AdapterError on a name that is missing or unknown (unless not `strict`), or a shape
        that differs; nothing has changed then. Without any of what only training needs, that starts afresh.
        """
        with self._unmerged():
            before = self.state_dict()
            try:
                self._copy_in(state, strict)
            except AdapterError:
                self._copy_in(before)
                raise

    def _copy_in(self, state: Mapping[str, Tensor], strict: bool = True) -> None:
        parameters = dict(self.named_parameters())
        for path, part in self.modules.items():
            names = {name: f"{path}.{name}" if path else name for name in part.adapter_parameters()}
            part.make_room({name: state[full].shape for name, full in names.items() if full in state})
        own = self.state_dict()
        if strict:
            check_keys(state, own if state.keys() - parameters.keys() else parameters, "state_dict")
        fitting = [name for name in own if name in state]
        for name in fitting:
            if own[name].shape != state[name].shape:
                shapes = f"shape {list(state[name].shape)} where {list(own[name].shape)} is expected"
                raise AdapterError(f"{name}: {shapes}")
        for name in fitting:
            own[name].copy_(state[name])

    def save(self, folder: str | PathLike, base_model: str | None = None) -> None:
        """Write `adapter_config.json` and `adapter_model.safetensors`, as Hugging Face PEFT reads them if it can.

        Both are complete or absent: they are written beside, synced and renamed. `base_model` is the name or path of
        the base model, for tools that look it up.
        """
        write_adapter(folder, formats.write(self, base_model))

    def bind(self, optimizer: torch.optim.Optimizer, scaler: Any = None) -> None:
        """Let the method take part in the optimizer's steps, which GRIT needs; bind every optimizer.

        At the first step, parameters that got no gradient are named in a warning. `scaler` is the `GradScaler`, where
        float16 training has one.
        """

        if isinstance(wrapped := getattr(optimizer, "optimizer", None), torch.optim.Optimizer):  # by accelerate
            optimizer, scaler = wrapped, scaler or getattr(optimizer, "scaler", None)
        reported = False  # not by removing the hook: torch goes through the hooks as they are called

        def report(*_):
            nonlocal reported
            names = [] if reported else self.without_gradient()
            reported = True
            if names:
                warnings.warn(
                    f"{len(names)} of {len(self.parameters())} trainable parameters got no gradient and will not be "
                    f"trained: {', '.join(names[:8])}{', …' if len(names) > 8 else ''}; leave them out of the targets",
                    stacklevel=2,
                )

        optimizer.register_step_pre_hook(report)
        self.method.bind(self, optimizer, scaler)

    def loss_terms(self, count: float | Tensor | None) -> None:
        """Tell the method how many terms the loss of the coming steps is a mean, or a sum, over: the labels in all
        micro-batches of a step, in all processes; `None` if unknown. GRIT takes it into account; others need nothing.
        """
        self.method.loss_terms(self, count)

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Inside, the model is as it would be without this attachment: the base model, bit for bit, merged or not.

        Raises AdapterError if the attachment is detached.
        """
        self._check_attached()
        with self._unmerged():
            active = self.active
            self._switch(False)
            try:
                yield
            finally:
                if self._attached:
                    self._switch(active)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Inside, every other attachment on the model is disabled."""
        with ExitStack() as stack:
            for other in attachments(self.model):
                if other is not self:
                    stack.enter_context(other.disabled())
            yield

    def merge(self) -> None:
        """Put the attachment into the weights, so that the forward costs what the base's does; originals are kept.

        Raises AdapterError, with nothing merged, if the method is not linear, a base weight is quantized or the
        attachment is detached.
        """
        self._check_attached()
        for path, part in self.modules.items():
            if part.unmergeable:
                raise AdapterError(f"{path}: {part.unmergeable}")
        if not self.merged:
            self._set_merged(True)
            self._carried.merged.append(self)

    def unmerge(self) -> None:
        """Undo `merge`: every bit of the base weights is as it was."""
        if self.merged:
            with self._carried.unmerged():
                self._carried.merged.remove(self)

    def detach(self, keep_merged: bool = False) -> None:
        """Put the original modules back and restore every `requires_grad`.

        `keep_merged=True` leaves merged weights in the model: the way to a plain fine-tuned model for deployment.
        Raises AdapterError, with nothing changed, if they are not merged, or others have a share in the same weights.
        """
        self._check_attached()
        if keep_merged and not self.merged:
            raise AdapterError("keep_merged=True: call merge() first")
        others = [other for other in self._carried.attachments if other is not self]
        if keep_merged and any(other.merged or _originals(other) for other in others):
            raise AdapterError("keep_merged=True: others are merged or train the model's weights; detach them first")
        if not keep_merged:
            self.unmerge()
            self._switch(False)
        for part in self.modules.values():
            part.remove()
        replace(self.model, {part: part.base for part in self.modules.values() if isinstance(part, Wrapper)})
        if keep_merged:
            for part in self.modules.values():
                part.keep_merged()
            self._carried.merged.remove(self)
        self._restore_requires_grad()
        self._carried.remove(self)
        self._attached = self.merged = self.active = False

    def _restore_requires_grad(self) -> None:
        attached = self._carried.attachments
        later = attached[attached.index(self) + 1 :]
        if later:  # it found frozen what this one had frozen
            later[0]._was_trainable |= self._was_trainable
            return
        with self._carried.unmerged():
            for (module, name), trainable in self._was_trainable.items():
                if (parameter := module._parameters.get(name)) is not None:
                    parameter.requires_grad_(trainable)

    def _check_attached(self) -> None:
        if not self._attached:
            raise AdapterError("the attachment is detached: attach or load it again")

    def _set_merged(self, merged: bool) -> None:
        for part in self.modules.values():
            part.merge() if merged else part.unmerge()
        self.merged = merged
        self._carried.switch_fused()

    @contextmanager
    def _unmerged(self) -> Iterator[None]:
        """Inside, this one is not merged; afterwards it is again, in its place among the others."""
        order = self._carried.merged
        place = order.index(self) if self.merged else None
        self.unmerge()
        try:
            yield
        finally:
            if place is not None and self._attached and not self.merged:
                with self._carried.unmerged():
                    order.insert(place, self)

    def _switch(self, active: bool) -> None:
        with self._carried.unmerged():
            self.active = active
            for part in self.modules.values():
                part.switch(active)
        self._carried.switch_fused()


def _originals(attachment: Attachment) -> set[int]:
    """Ids of the model's parameters that it trains in copies."""
    return {id(original) for part in attachment.modules.values() for original in part.originals()}
