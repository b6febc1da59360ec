"""Pictures that look alike though their pixels differ: scaled, compressed again, or slightly edited."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import datasets
import numpy as np
from PIL import Image

from vlm_data.images import decode
from vlm_data.splitting import keys_of

NEAR = 4  # bits of 64: pictures so near are mostly the same one, saved twice
_SAME_COLOR = 16  # levels of 255 that a part of the picture may differ by


@dataclass(frozen=True)
class Look:
    """What a picture looks like: `difference_hash`, and the mean colours of 8 by 8 parts, [64 * 3] of 0..255.

    The hash alone takes drawings for equal, whose lines are at the same places and whose colours are not.
    """

    hash: int
    colors: np.ndarray

    @classmethod
    def of(cls, picture: Image.Image) -> "Look":
        colors = np.asarray(picture.resize((8, 8), Image.Resampling.BOX), dtype=np.int16)
        return cls(difference_hash(picture), colors.ravel())


def near_duplicates(rows: datasets.Dataset, max_distance: int = NEAR) -> list[tuple[str, str, int]]:
    """Pairs of different pictures that look alike: (source of one, source of the other, distance), nearest first.

    The distance is the number of bits, of 64, in which the pictures' `difference_hash` differ; their colours are nearly
    the same too. Every image must decode: see `verify`. Time grows with the square of the number of pictures: some
    seconds for 100,000.
    """
    first = {key: index for index, key in reversed(list(enumerate(keys_of(rows))))}
    indices = sorted(first.values())
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        looks = list(pool.map(lambda index: Look.of(decode(rows[index]["image"])), indices))
    sources = rows["source"][:]
    return [
        (sources[indices[one]], sources[indices[other]], distance)
        for one, other, distance in near_pairs(looks, max_distance)
    ]


def difference_hash(picture: Image.Image) -> int:
    """64 bits: of the picture in grey at 9 by 8 pixels, whether each is brighter than its right neighbour (dHash)."""
    grey = np.asarray(picture.convert("L").resize((9, 8), Image.Resampling.LANCZOS), dtype=np.int16)
    bits = grey[:, :-1] > grey[:, 1:]
    return int.from_bytes(np.packbits(bits).tobytes())


def near_pairs(looks: Sequence[Look], max_distance: int = NEAR) -> list[tuple[int, int, int]]:
    """(position, position, distance) of the looks that are nearly equal, nearest first."""
    if not looks:
        return []
    hashes = np.array([look.hash for look in looks], dtype=np.uint64)
    colors = np.stack([look.colors for look in looks])
    pairs = []
    for one in range(len(looks) - 1):
        distances = np.bitwise_count(hashes[one + 1 :] ^ hashes[one])
        near = np.flatnonzero(distances <= max_distance)
        alike = np.abs(colors[one + 1 + near] - colors[one]).max(axis=1, initial=0) <= _SAME_COLOR
        pairs += [(int(distances[other]), one, int(one + 1 + other)) for other in near[alike]]
    return [(one, other, distance) for distance, one, other in sorted(pairs)]
