"""Which rows a model can take, and how long they are, before the first of them is trained on."""

from collections.abc import Callable, Iterator

import datasets
import numpy as np

from vlm_data.collators import Collator, ImageInputs, image_identity, images_of
from vlm_data.images import ImageError
from vlm_data.schema import DataError, Rejected, reject


def fit(
    rows: datasets.Dataset,
    collate: Collator,
    rejected: list[Rejected] | None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[datasets.Dataset, np.ndarray]:
    """(rows that `collate` takes, the length of each in tokens); each of the others goes to `rejected`.

    A row is too long as a whole or not at all: nothing is cut off, so an image keeps all its tokens and an answer its
    end. Of an image no more than the header is read. With `rejected` None the first bad row raises DataError.
    """
    outlines: dict[str | bytes, ImageInputs] = {}
    lengths, good = [], []
    for number, row in enumerate(_each(rows)):
        try:
            images = []
            for image in images_of(row):
                key = image_identity(image)
                if key not in outlines:
                    outlines[key] = collate.outline(image)
                images.append(outlines[key])
            lengths.append(collate.longest(row, images))
            good.append(number)
        except (DataError, ImageError) as error:
            reject(Rejected(row["source"], str(error).removeprefix(f"{row['source']}: ")), rejected)
        if progress is not None:
            progress(number + 1, len(rows))
    kept = rows if len(good) == len(rows) else rows.select(good)
    return kept, np.array(lengths, dtype=np.int64)


def _each(rows: datasets.Dataset) -> Iterator[dict]:
    """The rows one by one, read many at a time, which is faster."""
    for columns in rows.iter(256):
        for values in zip(*columns.values(), strict=True):
            yield dict(zip(columns, values, strict=True))
