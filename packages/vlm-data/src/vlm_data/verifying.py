"""Decode every image once before a run, so that a bad one is found now and by name."""

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import datasets
import numpy as np

from vlm_data.images import ImageError, decode, pixel_key
from vlm_data.schema import EXTRA_FEATURES, Rejected, reject


def verify(
    rows: datasets.Dataset,
    rejected: list[Rejected] | None,
    progress: Callable[[int, int], None] | None = None,
) -> datasets.Dataset:
    """The rows whose images decode; each of the others goes to `rejected` (None: the first one raises DataError).

    Each unique image is decoded once, in threads, and dropped at once; a hash of it stays as the column `pixels` (of
    several images, parted by spaces), by which `split` and `overlap` know equal pictures. progress(done, total) counts
    unique images.
    """
    keys, problems = pixel_keys(rows, progress)
    for source, key, problem in zip(rows["source"], keys, problems, strict=True):
        if key is None:
            reject(Rejected(source, problem), rejected)
    rows = rows.remove_columns("pixels") if "pixels" in rows.column_names else rows
    rows = rows.add_column("pixels", keys, feature=EXTRA_FEATURES["pixels"])
    return rows if None not in keys else rows.select(np.flatnonzero([key is not None for key in keys]))


def pixel_keys(
    rows: datasets.Dataset, progress: Callable[[int, int], None] | None = None
) -> tuple[list[str | None], list[str | None]]:
    """(keys, problems): of each row's pictures the hashes, parted by spaces, or None and what is wrong with one."""
    column = "images" if "images" in rows.column_names else "image"
    first: dict[str | bytes, tuple[int, int]] = {}  # of each image its row, and its place there
    shown = []  # of each row
    for index, images in enumerate(rows[column]):
        images = images if column == "images" else [images]
        shown.append([_identity(image) for image in images])
        for place, key in enumerate(shown[-1]):
            first.setdefault(key, (index, place))
    found: dict[str | bytes, tuple[str | None, str | None]] = {}

    def look(at: tuple[int, int]) -> tuple[str | None, str | None]:
        value = rows[at[0]][column]
        return _key_or_problem(value[at[1]] if column == "images" else value)

    # Not by way of the images themselves: all their bytes would wait in the pool's queue.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for done, (key, result) in enumerate(zip(first, pool.map(look, first.values()), strict=True), start=1):
            found[key] = result
            if progress is not None:
                progress(done, len(first))
    problems = [next((found[key][1] for key in of_row if found[key][0] is None), None) for of_row in shown]
    keys = [
        " ".join(found[key][0] for key in of_row) if problem is None else None
        for of_row, problem in zip(shown, problems, strict=True)
    ]
    return keys, problems


def _identity(image: dict) -> str | bytes:
    return image["path"] if image["bytes"] is None else hashlib.sha256(image["bytes"]).digest()


def _key_or_problem(image: dict) -> tuple[str | None, str | None]:
    try:
        return pixel_key(decode(image)), None
    except ImageError as error:
        return None, str(error)
