"""The last layer only where its answer counts.

A layer's attention mixes positions by its keys and values; its queries, its output projection and its MLP take each
position by itself: in the last layer, only the positions that predict a supervised token need them. What comes out
elsewhere lacks them and must not be used.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

Span = tuple[nn.Module, nn.Module]  # the first and the last of modules that run one after the other, or one twice


@contextmanager
def only_at(places: Tensor, spans: Sequence[Span]) -> Iterator[None]:
    """Run these modules at these places of the flattened [rows, length] alone."""
    handles = [handle for span in spans for handle in _restrict(places, *span)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _restrict(places: Tensor, first: nn.Module, last: nn.Module) -> tuple[RemovableHandle, RemovableHandle]:
    shape = torch.Size()

    def gather(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        nonlocal shape
        hidden, *others = args
        shape = hidden.shape[:-1]
        return hidden.flatten(0, -2).index_select(0, places), *others

    def scatter(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        whole = output.new_zeros(shape.numel(), output.shape[-1]).index_copy(0, places, output)
        return whole.view(*shape, -1)

    # First of all and last of all: adapters that hang on these modules run between.
    return first.register_forward_pre_hook(gather, prepend=True), last.register_forward_hook(scatter)
