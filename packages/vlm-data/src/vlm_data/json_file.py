"""A JSON file: one object, or records in an array or one a line."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from vlm_data.schema import DataError, Rejected, listed
from vlm_data.text_files import json_lines, parse_json, read_text

LINES = (".jsonl", ".ndjson")
Record = tuple[str, Any]  # its source, such as "qa.jsonl:3" or "qa.json[2]", and its value or why there is none


def content(path: Path, slim: Callable[[dict], Any] | None = None) -> dict | Iterator[Record]:
    """The object that the file is, or its records. Records on lines are read one by one, an array as a whole.

    slim: see `parse_json`. Raises DataError for a file that is neither.
    """
    if path.suffix.lower() in LINES:
        return _lines(path)
    text = read_text(path)
    if text.startswith("{") and "\n{" in text and _is_object(text.partition("\n")[0]):
        return _lines(path)
    value = parse_json(text, str(path), slim)
    if isinstance(value, list):
        return ((f"{path}[{index}]", record) for index, record in enumerate(value))
    if not isinstance(value, dict):
        raise DataError(f"{path}: neither an object nor records but {type(value).__name__}")
    return value


def records(path: Path) -> Iterator[Record]:
    """The records of a file that must have some. Raises DataError if it is one object instead."""
    found = content(path)
    if isinstance(found, dict):
        raise DataError(f"{path}: one object with {listed(found)}; needed: an array of records, or one a line")
    return found


def objects(value: Any, name: str, path: Path) -> list[dict]:
    """The value of a file's field that must be a list of objects. Raises DataError."""
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise DataError(f"{path}: {name} is no list of objects")
    return value


def _lines(path: Path) -> Iterator[Record]:
    for number, text in json_lines(path):
        source = f"{path}:{number}"
        try:
            yield source, parse_json(text, source)
        except DataError as error:
            yield source, Rejected(source, str(error).removeprefix(f"{source}: "))


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False
