"""What has been asked already, on disk: a line of JSON for each image, so that a run that was killed goes on."""

import json
import os
from pathlib import Path
from types import TracebackType

from vlm_data.schema import DataError


class Journal:
    """A JSONL file whose first line says what was asked for; `done` has the records by image.

    Raises DataError for a file that was written with other settings or is none of these. A last line that was cut off
    by a kill is dropped.
    """

    def __init__(self, path: str | os.PathLike, settings: dict) -> None:
        self.path = Path(path)
        self.done: dict[str, dict] = {}
        lines, whole = self._lines()
        if lines and lines[0] != {"settings": settings}:
            raise DataError(
                f"{self.path}: written by other settings; choose another file, or delete it to ask all again"
            )
        for record in lines[1:]:
            self.done[record["image"]] = record
        self._file = self.path.open("ab")
        self._file.truncate(whole)
        if not lines:
            self._write({"settings": settings})

    def add(self, record: dict) -> None:
        """Keep the record of an image."""
        self._write(record)
        self.done[record["image"]] = record

    def _lines(self) -> tuple[list[dict], int]:
        """The records, and how many bytes of the file are whole lines."""
        if not self.path.exists():
            return [], 0
        data = self.path.read_bytes()
        whole = data.rfind(b"\n") + 1
        try:
            lines = [json.loads(line) for line in data[:whole].splitlines()]
            if all(isinstance(line, dict) and ("image" in line) == (number > 0) for number, line in enumerate(lines)):
                return lines, whole
        except ValueError:
            pass
        raise DataError(f"{self.path}: not a record of asked questions; choose another file")

    def _write(self, record: dict) -> None:
        self._file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
        self._file.flush()  # into the system's hands: a kill of this process loses nothing

    def __enter__(self) -> "Journal":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
