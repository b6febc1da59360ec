"""Records from files: CSV, JSONL, JSON lists, COCO and VQA annotations, and a run's folder."""

import codecs
import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vlm_score.errors import ScoreError

Record = dict[str, Any]


def read_records(path: Path) -> list[Record]:
    """One record for each row of a table or entry of a list; each knows its place, `file:line`, as `source`.

    Of a dictionary (COCO, VQA) come the entries of "annotations", with their image's file name and their question where
    the file has them. {name: text, ...} gives records of `image` and `text`.

    Raises:
        ScoreError: there is no such file, it is not what its name says, or it has no records.
    """
    if path.is_dir():
        if not (path / "predictions.jsonl").is_file():
            raise ScoreError(f"{path} holds no predictions.jsonl: give the folder of a finished run, or a file")
        path = path / "predictions.jsonl"
    readers = {".csv": _csv, ".tsv": _csv, ".jsonl": _jsonl, ".json": _json}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise ScoreError(f"{path}: give a .csv, .tsv, .jsonl or .json file, or the folder of a run")
    try:
        records = [{**record, "source": f"{path.name}:{place}"} for place, record in reader(path)]
    except OSError as error:
        raise ScoreError(f"{path} cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise ScoreError(f"{path} cannot be read: {error}") from error
    if not records:
        raise ScoreError(f"{path} holds no rows")
    return records


def _csv(path: Path) -> Iterator[tuple[int, Record]]:
    text = _text(path)
    # Spreadsheets separate by what their country does not write in numbers.
    separator = "\t" if path.suffix.lower() == ".tsv" else max(",;\t", key=text.partition("\n")[0].count)
    rows = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator)
    for row in rows:
        if None in row or None in row.values():
            n = len(rows.fieldnames)
            raise ScoreError(f"{path}:{rows.line_num}: not {n} fields as in the header; quote texts with {separator!r}")
        yield rows.line_num, row


def _text(path: Path) -> str:
    """Of a file as spreadsheets write it: UTF-8, UTF-16 with its mark, else Windows-1252."""
    content = path.read_bytes()
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content.decode("utf-16")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("cp1252", errors="replace")


def _jsonl(path: Path) -> Iterator[tuple[int, Record]]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, _object(_parse(line, f"{path}:{number}"), f"{path}:{number}")


def _json(path: Path) -> Iterator[tuple[int, Record]]:
    content = _parse(path.read_text(encoding="utf-8-sig"), str(path))
    if isinstance(content, dict) and isinstance(content.get("annotations"), list):
        images = {image["id"]: image for image in content.get("images", [])}
        questions = {question["question_id"]: question for question in content.get("questions", [])}
        for number, entry in enumerate(content["annotations"], 1):
            entry = _object(entry, f"{path}: annotation {number}")
            image, question = images.get(entry.get("image_id"), {}), questions.get(entry.get("question_id"), {})
            # An annotation's own "id" counts captions; what predictions name is the image or the question.
            own = {key: value for key, value in entry.items() if key != "id"}
            yield number, {**_only(image, "file_name"), **_only(question, "question"), **own}
    elif isinstance(content, dict) and isinstance(content.get("questions"), list):
        yield from ((n, _object(entry, f"{path}: question {n}")) for n, entry in enumerate(content["questions"], 1))
    elif isinstance(content, dict) and content and all(isinstance(text, str | None) for text in content.values()):
        yield from ((n, {"image": name, "text": text}) for n, (name, text) in enumerate(content.items(), 1))
    elif isinstance(content, list):
        yield from ((n, _object(entry, f"{path}: entry {n}")) for n, entry in enumerate(content, 1))
    else:
        raise ScoreError(f"{path}: neither a list of records, nor COCO or VQA annotations, nor {{image: text}}")


def _only(record: Record, name: str) -> Record:
    return {name: record[name]} if name in record else {}


def _parse(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ScoreError(f"{place}: not JSON: {error}") from error


def _object(value: Any, place: str) -> Record:
    if not isinstance(value, dict):
        raise ScoreError(f"{place}: a {type(value).__name__} where a record {{...}} is expected")
    return value
