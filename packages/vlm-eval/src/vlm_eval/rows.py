"""What every metric accepts: one prediction and at least one reference a row."""

from collections.abc import Sequence

import numpy as np


def check_rows(
    predictions: Sequence[str], references: Sequence[str | Sequence[str]]
) -> tuple[list[str], list[list[str]]]:
    """Return both columns as lists; a plain string in `references` counts as that row's only reference.

    Raises:
        ValueError: the columns differ in length, there are no rows, or a row has no references.
        TypeError: a prediction or reference is not a string. The row is named, counting from 0.
    """
    if isinstance(predictions, str) or isinstance(references, str):
        raise TypeError("predictions and references are one text, not columns: give lists with one entry a row")
    predictions, references = list(predictions), list(references)
    if len(predictions) != len(references):
        raise ValueError(f"{len(predictions)} predictions but {len(references)} references: give one entry a row")
    if not predictions:
        raise ValueError("there are no rows to score: give at least one prediction")
    for row, prediction in enumerate(predictions):
        if not isinstance(prediction, str):
            found = type(prediction).__name__
            raise TypeError(f"row {row}: the prediction is of type {found}, not str; give '' where there is none")
    return predictions, [_references_of(row, entry) for row, entry in enumerate(references)]


def encodable(text: str) -> str:
    """The text as models' tokenizers take it: half a surrogate pair, which no encoding has, becomes a question mark."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _references_of(row: int, entry: str | Sequence[str]) -> list[str]:
    if isinstance(entry, str):
        return [entry]
    if not isinstance(entry, list | tuple | np.ndarray):
        raise TypeError(f"row {row}: references are of type {type(entry).__name__}; give a str or a list of str")
    if len(entry) == 0:
        raise ValueError(f"row {row}: there are no references; give at least one or leave the row out")
    for reference in entry:
        if not isinstance(reference, str):
            raise TypeError(f"row {row}: a reference is of type {type(reference).__name__}, not str")
    return list(entry)
