"""`attach` freezes a model and puts a method's modules into it; the `Attachment` is what knows about them.

Nothing is found again by searching names: the attachment holds its wrappers, and a wrapper names its own parameters.
So what trains, what is counted and what is saved is one and the same set.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from os import PathLike

import torch
from torch import Tensor, nn

from .bridge import parameter_count
from .errors import AdapterError, check_keys
from .files import read_adapter, write_adapter
from .interchange import config_of, key_of, keys_of_module, method_of, modules_of
from .lora import LoRA, LoRALinear
from .targets import exact_targets


def attach(model: nn.Module, method: LoRA) -> "Attachment":
    """Freeze every parameter of `model`, put `method`'s modules in place and return the handle to them.

    Raises:
        TargetError: an entry of the method's targets matches nothing, or something that is no linear layer.
        AdapterError: the model carries an attachment already.
    """
    if any(isinstance(module, LoRALinear) for module in model.modules()):
        raise AdapterError("the model carries an attachment already: detach() that one first")
    return Attachment(model, method)


def load(model: nn.Module, folder: str | PathLike, strict: bool = True) -> "Attachment":
    """Attach the adapter that `Attachment.save` or Hugging Face PEFT wrote to `folder`; it is trainable again.

    Raises:
        AdapterError: the folder holds no adapter, its configuration asks for what is not supported, or its keys or
            shapes are not the model's. With `strict=False` keys without a place in the model, and modules without
            keys, are left out. The model is unchanged then.
    """
    config, tensors = read_adapter(folder)
    try:
        method = method_of(config)
    except AdapterError as error:
        raise AdapterError(f"{folder}: {error}") from None
    found, expected = modules_of(config, model, tensors)
    if strict or not found:
        check_keys(tensors, [key for name in expected for key in keys_of_module(name)], str(folder))
    attachment = attach(model, replace(method, targets=exact_targets(model, found)))
    names = {key_of(name): name for name, _ in attachment.named_parameters()}
    try:
        attachment.load_state_dict({names[key]: tensors[key] for key in names.keys() & tensors.keys()}, strict)
    except AdapterError as error:
        attachment.detach()
        raise AdapterError(f"{folder}: {error}") from None
    return attachment


# Torch's fused encoder reads the linear layers' weights without calling them; these attributes switch it off.
_FUSED = {nn.TransformerEncoderLayer: "activation_relu_or_gelu", nn.TransformerEncoder: "use_nested_tensor"}


class Attachment:
    """A method's modules in a model. Made by `attach` and `load`."""

    def __init__(self, model: nn.Module, method: LoRA):
        self.model, self.method = model, method
        self.modules = method.wrap(model)
        self.merged = False
        self._was_trainable = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
        self._frozen = sum(parameter_count(parameter) for parameter, _ in self._was_trainable)
        layers = [(layer, flag) for layer in model.modules() for cls, flag in _FUSED.items() if isinstance(layer, cls)]
        self._fused = [(layer, flag, getattr(layer, flag)) for layer, flag in layers]
        model.requires_grad_(False)
        _replace(model, {module.base: module for module in self.modules.values()})
        self._attached = True
        self._set_active(True)

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The trainable parameters, under the names that `model.named_parameters()` gives them."""
        for path, module in self.modules.items():
            for name, parameter in module.adapter_parameters().items():
                yield f"{path}.{name}", parameter

    def parameters(self) -> list[nn.Parameter]:
        return [parameter for _, parameter in self.named_parameters()]

    @property
    def trainable(self) -> int:
        """Number of trainable parameters."""
        return sum(parameter.numel() for parameter in self.parameters())

    @property
    def total(self) -> int:
        """Number of parameters of the model, the attachment's included; 4-bit ones are counted unpacked."""
        return self._frozen + self.trainable

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors that `save` writes; the file adds a header of some 150 bytes per tensor."""
        return sum(parameter.nbytes for parameter in self.parameters())

    def summary(self) -> str:
        """What was attached where, as text: method, modules, parameters, size on disk."""
        kinds = Counter(re.sub(r"\b\d+\b", "*", path) for path in self.modules)
        return "\n".join([
            f"{self.method}",
            f"modules     {len(self.modules):,}: " + ", ".join(f"{count} x {kind}" for kind, count in kinds.items()),
            f"trainable   {self.trainable:,} of {self.total:,} parameters ({self.trainable / self.total:.3%})",
            f"on disk     {self.nbytes / 1e3:,.1f} kB",
        ])  # fmt: skip

    def state_dict(self) -> dict[str, Tensor]:
        """The attachment's own tensors by name; like torch's, they share memory with the parameters."""
        return {name: parameter.detach() for name, parameter in self.named_parameters()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor], strict: bool = True) -> None:
        """Copy tensors in. Raises AdapterError on a name that is missing or unknown (unless not `strict`), or a shape
        that differs; nothing has changed then.
        """
        own = dict(self.named_parameters())
        if strict:
            check_keys(state, own, "state_dict")
        fitting = [name for name in own if name in state]
        for name in fitting:
            if own[name].shape != state[name].shape:
                raise AdapterError(f"{name}: shape {list(state[name].shape)} where {list(own[name].shape)} is expected")
        with self._unmerged():
            for name in fitting:
                own[name].copy_(state[name])

    def save(self, folder: str | PathLike, base_model: str | None = None) -> None:
        """Write `adapter_config.json` and `adapter_model.safetensors` as Hugging Face PEFT reads them.

        Both are complete or absent: they are written beside, synced and renamed. `base_model` is the name or path of
        the base model, for tools that look it up.
        """
        config = config_of(self.method, self.model, self.modules, base_model)
        write_adapter(folder, config, {key_of(name): tensor for name, tensor in self.state_dict().items()})

    def bind(self, optimizer: torch.optim.Optimizer) -> None:
        """Let the method take part in the optimizer's step. LoRA has nothing to do there."""

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Inside, the model is the base model bit for bit, merged or not."""
        with self._unmerged():
            active = self._active
            self._set_active(False)
            try:
                yield
            finally:
                self._set_active(active)

    def merge(self) -> None:
        """Add the product to the weights, so that the forward costs what the base's does; originals are kept aside.

        Raises AdapterError, with nothing merged, if a base weight is quantized or the attachment is detached.
        """
        self._check_attached()
        for path, module in self.modules.items():
            if module.layout.quantized:
                kind = type(module.base).__name__
                raise AdapterError(f"{path}: a quantized {kind} cannot be merged; load the base model unquantized")
        if not self.merged:
            for module in self.modules.values():
                module.merge()
            self.merged = True
            self._set_active(False)

    def unmerge(self) -> None:
        """Undo `merge`: every bit of the base weights is as it was."""
        if self.merged:
            for module in self.modules.values():
                module.unmerge()
            self.merged = False
            self._set_active(True)

    def detach(self, keep_merged: bool = False) -> None:
        """Put the original modules back and restore every `requires_grad`.

        `keep_merged=True` leaves merged weights in the model: the way to a plain fine-tuned model for deployment.
        """
        self._check_attached()
        if not keep_merged:
            self.unmerge()
        self._set_active(False)
        _replace(self.model, {module: module.base for module in self.modules.values()})
        for parameter, trainable in self._was_trainable:
            parameter.requires_grad_(trainable)
        if self.merged:
            for module in self.modules.values():
                module.base.weight.requires_grad_(module.original.requires_grad)
        self._attached = False

    def _check_attached(self) -> None:
        if not self._attached:
            raise AdapterError("the attachment is detached: attach or load it again")

    @contextmanager
    def _unmerged(self) -> Iterator[None]:
        merged = self.merged
        self.unmerge()
        try:
            yield
        finally:
            if merged:
                self.merge()

    def _set_active(self, active: bool) -> None:
        self._active = active
        for module in self.modules.values():
            module.active = active
        for layer, flag, value in self._fused:
            setattr(layer, flag, 0 if active else value)


def _replace(model: nn.Module, replacements: dict[nn.Module, nn.Module]) -> None:
    """Exchange modules everywhere in the tree, also where one is reached by several names."""
    slots = [(parent, name, child) for parent in model.modules() for name, child in parent._modules.items()]
    for parent, name, child in slots:
        if child in replacements:
            setattr(parent, name, replacements[child])
