"""What a model carries, in its attribute `_carried`: the attachments, and what has to change for them."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from .checkpointing import allow_checkpointing

# Torch's fused encoder reads the linear layers' weights without calling them; these attributes switch it off.
_FUSED = {nn.TransformerEncoderLayer: "activation_relu_or_gelu", nn.TransformerEncoder: "use_nested_tensor"}


class Carried:
    """`attachments` in the order of attaching; `merged` those that are merged, in the order of merging."""

    def __init__(self, model: nn.Module):
        self.attachments: list = []
        self.merged: list = []
        layers = [(layer, flag) for layer in model.modules() for cls, flag in _FUSED.items() if isinstance(layer, cls)]
        self._fused = [(layer, flag, getattr(layer, flag)) for layer, flag in layers]
        self._hooks: list = []

    def add(self, attachment) -> None:
        if not self.attachments:
            attachment.model._carried = self
            self._hooks = allow_checkpointing(attachment.model)
        self.attachments.append(attachment)

    def remove(self, attachment) -> None:
        self.attachments.remove(attachment)
        self.switch_fused()
        if not self.attachments:
            for hook in self._hooks:
                hook.remove()
            del attachment.model._carried

    @contextmanager
    def unmerged(self) -> Iterator[None]:
        """Inside, nothing is merged. What is in `merged` afterwards is merged then, in that order."""
        for attachment in reversed(self.merged):  # the later ones hold weights with the earlier ones in them
            attachment._set_merged(False)
        try:
            yield
        finally:
            for attachment in self.merged:
                attachment._set_merged(True)

    def switch_fused(self) -> None:
        off = any(attachment.active and not attachment.merged for attachment in self.attachments)
        for layer, flag, value in self._fused:
            setattr(layer, flag, 0 if off else value)
