"""A prefix that starts as real tokens, and one that leaves its re-parameterisation."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from ..errors import AdapterError
from .attention import PrefixAttention
from .states import PrefixStates


@torch.no_grad()
def initialize_prefix(attachment, *args, run: Callable | None = None, **kwargs) -> None:
    """Set keys and values to those of the first `length` real tokens of an input, by running the model.

    They are what each layer's attention works with: keys after rotation, by the positions that the tokens have there.
    Of a batch it is the first row that is long enough; tokens that the mask hides are passed over. With
    `shift_positions` a causal model then starts as if it had read those tokens before, up to rounding; otherwise they
    overlap with the positions of what it reads.

    `args` and `kwargs` are the model's, or those of `run`, which may be a module that the model is in.

    Raises:
        AdapterError: not a prefix, one with a re-parameterisation, no row is long enough, or an attention module does
            not run. Nothing has changed then.
    """
    parts = _parts(attachment)
    for part in parts:
        if not isinstance(part.prefix, PrefixStates):
            raise AdapterError(
                f"{part.name}: no network makes given keys and values; fold_prefix() the attachment first"
            )
    with _recording(attachment, parts):
        (run or attachment.model)(*args, **kwargs)
        states = [_first_real(part) for part in parts]
    for part, (keys, values) in zip(parts, states, strict=True):
        part.prefix.keys.copy_(keys)
        part.prefix.values.copy_(values)


def fold_prefix(attachment) -> None:
    """Replace the re-parameterisation by the keys and values that it makes, as trainable parameters.

    The outputs stay the same; an optimizer has to be made anew. Raises AdapterError if it is not a prefix.
    """
    for part in _parts(attachment):
        if not isinstance(part.prefix, PrefixStates):
            part.prefix = part.prefix.folded().requires_grad_(part.prefix.embedding.requires_grad)
    attachment.method = replace(attachment.method, reparameterization=None)


def _parts(attachment) -> list[PrefixAttention]:
    parts = [part for part in attachment.modules.values() if isinstance(part, PrefixAttention)]
    if not parts:
        raise AdapterError(f"{attachment.method}: not a prefix; give the attachment of a Prefix")
    return parts


def _first_real(part: PrefixAttention) -> tuple[Tensor, Tensor]:
    """Keys and values [length, heads, head_dim] of the first row with `length` real tokens."""
    if part.recorded is None:
        raise AdapterError(f"{part.name}: does not run with this input; leave it out of the targets")
    keys, values, real = part.recorded
    count = real.sum(1)
    row = int((count >= part.length).int().argmax())
    if count[row] < part.length:
        raise AdapterError(f"{part.name}: {int(count.max())} real tokens at most, and length={part.length}; give more")
    first = real[row].nonzero()[: part.length, 0]
    return keys[row, :, first].transpose(0, 1), values[row, :, first].transpose(0, 1)


@contextmanager
def _recording(attachment, parts: list[PrefixAttention]) -> Iterator[None]:
    """Inside, the parts record what they see, as if there were none of the attachment, and nothing drops out."""
    training = [module for module in attachment.model.modules() if module.training]
    attachment.model.eval()
    for part in attachment.modules.values():
        part.switch(False)  # not disabled(), in which torch's fused layers would call no attention module
    for part in parts:
        part.recording = True
    try:
        yield
    finally:
        for part in parts:
            part.recording, part.recorded = False, None
        for part in attachment.modules.values():
            part.switch(attachment.active)
        for module in training:
            module.training = True
