"""Split rows into a training and a validation part that share no image."""

import hashlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import datasets
import numpy as np

from vlm_data.images import content_key
from vlm_data.schema import DataError

_SEARCHED = 4096  # rows: only the last part of the validation set is searched for the exact sum, the rest is just taken


def split(
    rows: datasets.Dataset, val_fraction: float = 0.2, seed: int = 42
) -> tuple[datasets.Dataset, datasets.Dataset]:
    """(train, val): all rows of an image are on one side, also where the image is there under two names.

    The validation part has as near to `val_fraction` of the rows as whole images allow, and at least one image. Which
    images it has depends on the seed and the images' bytes, not on their names or order; rows keep their order.

    Raises DataError for a fraction outside (0, 1) or fewer than two distinct images, ImageError for an unreadable file.
    """
    if not 0 < val_fraction < 1:
        raise DataError(f"val_fraction is {val_fraction}; it must lie between 0 and 1")
    keys = _content_keys(rows)
    sizes = Counter(keys)
    if len(sizes) < 2:
        raise DataError(f"cannot split rows of {len(sizes)} distinct image(s): two are needed")
    shuffled = sorted(sizes, key=lambda key: hashlib.sha256(f"{seed} {key}".encode()).digest())
    chosen = _nearest_sum([sizes[key] for key in shuffled], val_fraction * len(rows))
    val_keys = {shuffled[position] for position in chosen}
    in_val = np.array([key in val_keys for key in keys])
    return rows.select(np.flatnonzero(~in_val)), rows.select(np.flatnonzero(in_val))


def _content_keys(rows: datasets.Dataset) -> list[str]:
    images = list(rows["image"])
    paths = list(dict.fromkeys(image["path"] for image in images if image["bytes"] is None))
    with ThreadPoolExecutor() as pool:
        key_of = dict(zip(paths, pool.map(content_key, paths), strict=True))
    return [key_of[image["path"]] if image["bytes"] is None else content_key(image) for image in images]


def _nearest_sum(sizes: list[int], wanted: float) -> list[int]:
    """Positions, the early ones preferred, whose sizes sum as near to `wanted` as can be; never none, never all."""
    gap = min(max(round(wanted), 1), sum(sizes) - 1)
    taken, rest = [], []
    for position, size in enumerate(sizes):
        if gap > _SEARCHED and size <= gap:
            taken.append(position)
            gap -= size
            wanted -= size
        else:
            rest.append(position)
    # A subset sum: reached_by[s] is the first position that makes the sum s possible, -1 while it is not.
    smallest = min(sizes[position] for position in rest)
    largest_sum = min(max(2 * gap, smallest), sum(sizes[position] for position in rest) - 1)
    reached_by = np.full(largest_sum + 1, -1)
    reached_by[0] = 0
    for position in rest:
        size = sizes[position]
        if size <= largest_sum:
            new = (reached_by[: largest_sum + 1 - size] >= 0) & (reached_by[size:] < 0)
            reached_by[size:][new] = position
        if reached_by[gap] >= 0:
            break
    sums = np.flatnonzero(reached_by >= 0)
    if not taken:
        sums = sums[sums > 0]
    total = sums[np.argmin(np.abs(sums - wanted))]
    while total > 0:
        taken.append(int(reached_by[total]))
        total -= sizes[taken[-1]]
    return taken
