"""The last layer's MLP only where its answer counts.

A layer's attention mixes positions, its MLP does not: behind the last attention, only the positions that predict a
supervised token have to go on. What comes out elsewhere lacks the MLP and must not be used.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def only_at(places: Tensor, first: nn.Module, last: nn.Module) -> Iterator[None]:
    """Run `first` to `last` (the MLP's modules, or one) at these places of the flattened [rows, length] alone."""
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
    handles = first.register_forward_pre_hook(gather, prepend=True), last.register_forward_hook(scatter)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
