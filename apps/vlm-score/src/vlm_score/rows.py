"""Predictions and references brought together by their ids."""

import contextlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlm_eval.report import Row
from vlm_score.errors import ScoreError
from vlm_score.files import Record

PREDICTION = ("prediction", "predicted_answer", "predicted", "generated", "text", "caption", "answer")
REFERENCES = ("references", "reference", "answers", "ground_truth", "captions", "answer", "caption")
QUESTION = ("question", "prompt")
IMAGE = ("image", "image_name", "file_name", "image_path")
TYPES = ("question_type", "answer_type", "type", "category")


@dataclass(frozen=True)
class Answer:
    """A prediction; `failed` says why there is none, and the text is then empty."""

    text: str
    failed: str | None = None


@dataclass(frozen=True)
class Columns:
    """Names of fields, where the files do not use any of the common ones."""

    prediction: str | None = None
    reference: str | None = None
    id: str | None = None


def join(
    predictions: list[Record], references: list[Record] | None, columns: Columns, partial: bool
) -> tuple[list[Row], list[Answer], dict[str, list[str]]]:
    """Rows in the order of the references, their answers, and the ids left out: `missing`, and `extra` predictions.

    Without `references`, both are read from the same records. Files are joined by the first kind of id that both have
    and of which they share some: the named column, question_id, id, image with question, image_id, image.

    Raises:
        ScoreError: a field or all ids are not found, an id has two different predictions, or ids are missing or extra
            and it is not to be `partial`.
    """
    name = _field(predictions, columns.prediction, PREDICTION, "prediction")
    if references is None:
        other = tuple(alias for alias in REFERENCES if alias != name)
        reference = _field(predictions, columns.reference, other, "reference")
        rows = [_row(_name_of(record), [record], reference) for record in predictions]
        return rows, [_answer(record, name) for record in predictions], {"missing": [], "extra": []}

    reference = _field(references, columns.reference, REFERENCES, "reference")
    answers, groups = _match(predictions, references, columns.id, name)
    missing = [key for key in groups if key not in answers]
    extra = [key for key in answers if key not in groups]
    if (missing or extra) and not partial:
        raise ScoreError(
            "; ".join(
                f"{len(ids)} {what}: {', '.join(ids[:5])}{', ...' if len(ids) > 5 else ''}"
                for ids, what in ((missing, "ids without a prediction"), (extra, "predictions without references"))
                if ids
            )
            + "; mend the file, or score the rows that both have with --partial"
        )
    common = [key for key in groups if key in answers]
    rows = [_row(key, groups[key], reference, answers[key]) for key in common]
    return rows, [_answer(answers[key], name) for key in common], {"missing": missing, "extra": extra}


def _match(
    predictions: list[Record], references: list[Record], column: str | None, prediction: str
) -> tuple[dict[str, Record], dict[str, list[Record]]]:
    kinds = [column] if column else ["question_id", "id", "image+question", "image_id", "image", "image name", "stem"]
    for kind in kinds:
        left = [_key(record, kind) for record in predictions]
        right = [_key(record, kind) for record in references]
        if None in left or None in right or not set(left) & set(right):
            continue
        answers: dict[str, Record] = {}
        for key, record in zip(left, predictions, strict=True):
            if key in answers and answers[key].get(prediction) != record.get(prediction):
                places = f"{answers[key]['source']} and {record['source']}"
                raise ScoreError(f"two different predictions for {kind} {key} ({places}): keep one")
            answers[key] = record
        groups: dict[str, list[Record]] = {}
        for key, record in zip(right, references, strict=True):
            groups.setdefault(key, []).append(record)
        return answers, groups
    ours, theirs = (", ".join(key for key in side[0] if key != "source") for side in (predictions, references))
    raise ScoreError(
        f"predictions have the fields {ours}, references {theirs}: they share no ids; name the field with --id-column"
    )


def _key(record: Record, kind: str) -> str | None:
    image, question = _first(record, IMAGE), _first(record, QUESTION)
    if kind == "image+question":
        return None if image is None or question is None else f"{Path(image).name}: {question}"
    if kind == "image":
        return image
    if kind == "image name":
        return None if image is None else Path(image).name
    if kind == "stem":  # of results that name images without their ending
        return None if image is None else Path(image).stem
    value = record.get(kind)
    return None if value in (None, "") else str(value)


def _name_of(record: Record) -> str:
    for kind in ("question_id", "id", "image+question", "image_id", "image"):
        key = _key(record, kind)
        if key is not None:
            return key
    return record["source"]


def _field(records: list[Record], named: str | None, aliases: Iterable[str], what: str) -> str:
    """The field that holds the predictions or references, of the first record, which all must have."""
    first = records[0]
    found = named if named is not None else next((alias for alias in aliases if alias in first), None)
    if found is None or found not in first:
        has = ", ".join(key for key in first if key != "source")
        asked = f"no field {found!r}" if found else f"no {what} among the fields"
        raise ScoreError(f"{first['source']}: {asked} ({has}); name it with --{what}-column")
    return found


def _first(record: Record, names: Iterable[str]) -> str | None:
    value = next((record[name] for name in names if record.get(name) not in (None, "")), None)
    return None if value is None else str(value)


def _row(key: str, records: list[Record], reference: str, answer: Record | None = None) -> Row:
    """The row of an id. What the references do not tell (the picture, the question) the prediction may."""
    texts = [text for record in records for text in _texts(record, reference)]
    if not texts:
        raise ScoreError(f"{records[0]['source']}: no reference in {reference!r}; give one or leave the row out")
    sides = [*records, *([answer] if answer else [])]
    question, image = (next((v for side in sides if (v := _first(side, names))), None) for names in (QUESTION, IMAGE))
    types = {name: value for name in TYPES for side in reversed(sides) if (value := _first(side, [name]))}
    return Row(key, texts, question, image, types)


def _texts(record: Record, name: str) -> list[str]:
    """References of a field: a text, a list, a list written as JSON in a table's cell, or VQA's list of answers."""
    value = record.get(name)
    if isinstance(value, str) and value.lstrip().startswith("["):
        with contextlib.suppress(json.JSONDecodeError):  # then it is a text that begins with a bracket
            value = json.loads(value)
    entries = value if isinstance(value, list) else [value]
    texts = [entry.get("answer", entry.get("caption")) if isinstance(entry, dict) else entry for entry in entries]
    return [str(text) for text in texts if text is not None]


def _answer(record: Record, name: str) -> Answer:
    value: Any = record.get(name)
    reason = record.get("error")
    if value is None or reason:
        return Answer("", str(reason or "no prediction"))
    text = str(value)
    return Answer(text, None if text.strip() else "empty")
