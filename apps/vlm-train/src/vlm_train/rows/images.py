"""The distinct images of rows. Those that a table holds may be more than memory: they are read when asked for."""

from collections.abc import Sequence
from typing import Any

from datasets import Dataset

from vlm_data.collators import image_identity


class DistinctImages(Sequence):
    """The images that the rows show, each once, in the order in which they are shown first."""

    def __init__(self, rows: Dataset):
        self._rows = rows
        first: dict[str | bytes, dict | tuple[int, int | None]] = {}  # an image, or where to read it
        for row, image in enumerate(rows["image"]):
            first.setdefault(image_identity(image), image if image["bytes"] is None else (row, None))
        if "images" in rows.column_names:  # of conversations
            for row, images in enumerate(rows["images"]):
                for place, image in enumerate(images or ()):
                    first.setdefault(image_identity(image), image if image["bytes"] is None else (row, place))
        self._found = list(first.values())

    def __len__(self) -> int:
        return len(self._found)

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            part = object.__new__(DistinctImages)
            part._rows, part._found = self._rows, self._found[index]
            return part
        found = self._found[index]
        if isinstance(found, dict):
            return found
        row, place = found
        return self._rows[row]["image"] if place is None else self._rows[row]["images"][place]


def image_numbers(rows: Dataset) -> list[int]:
    """A number for the image of each row: equal for equal ones."""
    numbers: dict[str | bytes, int] = {}
    return [numbers.setdefault(image_identity(image), len(numbers)) for image in rows["image"]]
