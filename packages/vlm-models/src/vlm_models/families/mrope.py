"""Positions in time, height and width: what Qwen2-VL, Qwen2.5-VL and Qwen3-VL rotate queries and keys by.

Wang et al. 2024, "Qwen2-VL", section 2.1, "Multimodal Rotary Position Embedding". transformers' `get_rope_index` goes
through rows and images one by one, which for a batch of small images takes as long as a layer.
"""

from functools import lru_cache

import torch
from torch import Tensor


def mrope_positions(images: Tensor, real: Tensor, sizes: Tensor) -> Tensor:
    """Position ids [3, rows, length].

    A token of text has one position in all three and comes one behind the last; a token of an image is as far behind
    the image's beginning as its place in time, height and width; and what follows the image is behind its longer side.

    Args:
        images: which tokens [rows, length] are an image's.
        real: 1 for the tokens [rows, length] that are not padding.
        sizes: time, height and width in tokens [images, 3] of the images, row by row.
    """
    if not len(sizes):
        return (real.cumsum(1) - real).expand(3, -1, -1)
    places = torch.cat([_places(*size) for size in sizes.tolist()], dim=1).to(images.device)
    sides = places.new_zeros(places.shape[1])
    sides[sizes.prod(1).cumsum(0) - 1] = sizes[:, 1:].amax(1)  # an image's last token makes the step over all of it
    steps = real.masked_scatter(images, sides)
    within = places.new_zeros(3, *images.shape).masked_scatter(images, places)
    return steps.cumsum(1) - steps + within


@lru_cache(4096)
def _places(time: int, height: int, width: int) -> Tensor:
    """Where each token of an image is in it, [3, tokens]."""
    return torch.cartesian_prod(*map(torch.arange, (time, height, width))).T
