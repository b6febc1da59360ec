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
    """The rows whose image decodes; each of the others goes to `rejected` (None: the first one raises DataError).

    Each unique image is decoded once, in threads, and dropped at once; a hash of it stays as the column `pixels`, by
    which `split`, `overlap` and `describe` know equal pictures. progress(done, total) counts unique images.
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
    """(keys, problems): of each row's picture its hash, or None and what is wrong with it."""
    first_row: dict[str | bytes, int] = {}  # of each image
    images = []  # of each row
    for index, image in enumerate(rows["image"]):
        key = image["path"] if image["bytes"] is None else hashlib.sha256(image["bytes"]).digest()
        images.append(key)
        first_row.setdefault(key, index)
    found = {}
    # Not by way of the images themselves: all their bytes would wait in the pool's queue.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = pool.map(lambda index: _key_or_problem(rows[index]["image"]), first_row.values())
        for done, (key, result) in enumerate(zip(first_row, results, strict=True), start=1):
            found[key] = result
            if progress is not None:
                progress(done, len(first_row))
    return [found[key][0] for key in images], [found[key][1] for key in images]


def _key_or_problem(image: dict) -> tuple[str | None, str | None]:
    try:
        return pixel_key(decode(image)), None
    except ImageError as error:
        return None, str(error)
