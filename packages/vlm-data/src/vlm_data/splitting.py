"""Training and validation rows that share no picture."""

import hashlib
import math
from collections import Counter

import datasets
import numpy as np

from vlm_data.images import ImageError
from vlm_data.schema import DataError
from vlm_data.verifying import pixel_keys


def split(
    rows: datasets.Dataset, val_fraction: float = 0.2, seed: int = 42, *, stratify: bool = False
) -> tuple[datasets.Dataset, datasets.Dataset]:
    """(train, val): all rows of a picture are on one side, also where it is there under two names or in two formats.

    A picture is in the validation part if a hash of it and the seed, as a number in [0, 1), is less than
    `val_fraction`. So where a picture goes depends on itself alone: it stays where it is when rows are added, taken
    away or reordered. The parts' sizes are near the fraction as those of draws are, and neither part is ever empty.

    stratify: spread the pictures evenly over the parts by their most frequent reference instead. Every answer then has
    its share in both parts, to within one picture, but adding rows can move others.

    Pictures that one row shows together go to one side, with all that other rows show with either.

    Rows keep their order. Rows that `verify` has seen are not decoded again. Raises DataError for a fraction outside
    (0, 1) or fewer than two distinct pictures, ImageError for an image that does not decode.
    """
    if not 0 < val_fraction < 1:
        raise DataError(f"val_fraction is {val_fraction}; it must lie between 0 and 1")
    keys = _joined(keys_of(rows))
    place = {key: _place(key, seed) for key in keys}
    if len(place) < 2:
        raise DataError(f"cannot split rows of {len(place)} distinct image(s): two are needed")
    ordered = sorted(place, key=place.get)
    if stratify:
        in_val = _spread(ordered, _strata(rows, keys), val_fraction, _place("", seed))
    else:
        in_val = {key for key in ordered if place[key] < val_fraction}
    in_val = in_val or {ordered[0]}  # at least one picture on each side
    in_val = in_val if len(in_val) < len(ordered) else in_val - {ordered[-1]}
    mask = np.array([key in in_val for key in keys])
    return rows.select(np.flatnonzero(~mask)), rows.select(np.flatnonzero(mask))


def overlap(train: datasets.Dataset, test: datasets.Dataset) -> list[tuple[str, str]]:
    """For each picture that is in both, the first row of each that shows it, by their `source`; empty if none is."""
    first: list[dict[str, str]] = [{}, {}]
    for sources, rows in zip(first, (train, test), strict=True):
        for keys, source in zip(keys_of(rows), rows["source"][:], strict=True):
            for key in keys.split():
                sources.setdefault(key, source)
    return [(first[0][key], source) for key, source in first[1].items() if key in first[0]]


def keys_of(rows: datasets.Dataset) -> list[str]:
    """The hashes of each row's pictures, parted by spaces: the column `pixels`, or decoded now. Raises ImageError."""
    if "pixels" in rows.column_names:
        return rows["pixels"][:]
    keys, problems = pixel_keys(rows)
    if None in keys:
        raise ImageError(next(problem for problem in problems if problem is not None))
    return keys


def _joined(keys: list[str]) -> list[str]:
    """For each row one picture that stands for all that go with its own: the same for rows that share one."""
    other: dict[str, str] = {}  # of a picture, one that it goes with and that comes before it in the alphabet

    def standing_for(key: str) -> str:
        while key in other:
            key = other[key]
        return key

    for row in set(keys):
        found = sorted({standing_for(key) for key in row.split()})
        other.update(dict.fromkeys(found[1:], found[0]))
    return [standing_for(row.partition(" ")[0]) for row in keys]


def _place(key: str, seed: int) -> float:
    """A number in [0, 1), uniform over keys."""
    return int.from_bytes(hashlib.sha256(f"{seed} {key}".encode()).digest()[:6]) / 2**48


def _strata(rows: datasets.Dataset, keys: list[str]) -> dict[str, str]:
    """The most frequent reference of each picture."""
    counts: dict[str, Counter] = {}
    for key, references in zip(keys, rows["references"], strict=True):
        counts.setdefault(key, Counter()).update(references)
    return {key: count.most_common(1)[0][0] if count else "" for key, count in counts.items()}


def _spread(ordered: list[str], stratum: dict[str, str], fraction: float, start: float) -> set[str]:
    """Systematic sampling: of the pictures laid out by stratum, those at equal distances, 1 / fraction."""
    laid_out = sorted(ordered, key=stratum.get)  # stable: within a stratum the order stays random
    ticks = [math.floor(start + index * fraction) for index in range(len(laid_out) + 1)]
    return {key for key, tick, next_tick in zip(laid_out, ticks, ticks[1:], strict=False) if next_tick > tick}
