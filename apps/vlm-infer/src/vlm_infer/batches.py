"""Rows in batches: what shares an image side by side, and never more in memory than a window of rows."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from vlm_data import Rejected
from vlm_data.collators import image_identity
from vlm_infer.rows import Row, Rows
from vlm_models import together

WINDOW_ROWS, WINDOW_BYTES = 8192, 2**26  # of images, where they are not files


@dataclass(frozen=True)
class RowBatch:
    """Some rows and their positions."""

    positions: list[int]
    rows: list[Row]


def batches(
    rows: Rows, positions: Sequence[int], size: int, reject: Callable[[int, Rejected], None]
) -> Iterator[RowBatch]:
    """The rows at these positions in batches of `size`; of those that cannot be read `reject` is told."""
    for window in _windows(rows, positions, reject):
        images = [image_identity(row["image"]) for row in window.rows]
        for numbers in together(images, [len(row["prompt"] or "") for row in window.rows], size):
            yield RowBatch(
                [window.positions[number] for number in numbers], [window.rows[number] for number in numbers]
            )


def _windows(rows: Rows, positions: Sequence[int], reject: Callable[[int, Rejected], None]) -> Iterator[RowBatch]:
    window, held = RowBatch([], []), 0
    for position, row in zip(map(int, positions), rows.read(positions), strict=True):
        if isinstance(row, Rejected):
            reject(position, row)
            continue
        window.positions.append(position)
        window.rows.append(row)
        held += len(row["image"]["bytes"] or b"")
        if len(window.rows) == WINDOW_ROWS or held > WINDOW_BYTES:
            yield window
            window, held = RowBatch([], []), 0
    if window.rows:
        yield window
