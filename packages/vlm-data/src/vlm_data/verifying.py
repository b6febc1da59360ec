"""Decode every image once before a run, so that a bad one is found now and by name."""

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import datasets

from vlm_data.images import ImageError, decode
from vlm_data.schema import Rejected, reject


def verify(
    rows: datasets.Dataset,
    rejected: list[Rejected] | None,
    progress: Callable[[int, int], None] | None = None,
) -> datasets.Dataset:
    """The rows whose image decodes; each of the others goes to `rejected` (None: the first one raises DataError).

    Each unique image is decoded once, in threads, and dropped at once. progress(done, total) counts unique images.
    """
    first_row: dict[str | bytes, int] = {}  # of each image
    images = []  # of each row
    for index, image in enumerate(rows["image"]):
        key = image["path"] if image["bytes"] is None else hashlib.sha256(image["bytes"]).digest()
        images.append(key)
        first_row.setdefault(key, index)
    problems = {}
    # Not by way of the images themselves: all their bytes would wait in the pool's queue.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = pool.map(lambda index: _problem(rows[index]["image"]), first_row.values())
        for done, (key, problem) in enumerate(zip(first_row, results, strict=True), start=1):
            if problem is not None:
                problems[key] = problem
            if progress is not None:
                progress(done, len(first_row))
    if not problems:
        return rows
    for source, key in zip(rows["source"], images, strict=True):
        if key in problems:
            reject(Rejected(source, problems[key]), rejected)
    return rows.select([index for index, key in enumerate(images) if key not in problems])


def _problem(image: dict) -> str | None:
    try:
        decode(image)
    except ImageError as error:
        return str(error)
    return None
