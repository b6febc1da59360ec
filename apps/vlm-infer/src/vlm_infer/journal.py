"""What is done, on disk: `OUT.parts` beside the output, so that a job that was killed goes on where it was.

    00000.jsonl       what the texts depend on, for a job with others is refused; then a line for each row that process
                      0 is done with: its position, and a text or the reason why there is none
    00000.lock        held by process 0 while it runs

Lines are added and synced in parts, about one a second. A kill costs what is not in them yet, which is done again. Of
several lines for a row the last counts. Reading goes by the place of each line (9 bytes a row), so that memory does not
depend on the texts.
"""

import json
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from vlm_infer.errors import InferError

SECONDS = 1.0  # between two parts
Record = dict[str, Any]


class Journal:
    """The lines of one process, which adds to them in a `with` block.

    settings: as JSON. Raises InferError where another process writes to the same journal.
    """

    def __init__(self, folder: Path, settings: Record, process: int = 0):
        self.folder, self._settings = folder, settings
        self._path, self._lock = folder / f"{process:05d}.jsonl", FileLock(folder / f"{process:05d}.lock")
        self._lines: list[bytes] = []
        self._written = time.monotonic()

    def __enter__(self) -> "Journal":
        self._path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise InferError(
                f"{self._path.parent}: another vlm-infer is at work on it; wait for it, or stop it"
            ) from None
        self._file = self._path.open("ab")
        whole = _whole(self._path)
        self._file.truncate(whole)  # a kill may have cut the last line off
        if whole == 0:
            self._file.write(json.dumps({"settings": self._settings}).encode() + b"\n")
            self.sync()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.sync()
        self._file.close()
        self._lock.release()

    def add(self, records: list[Record]) -> None:
        """Keep the records of some rows; each has its row's position as `row`."""
        self._lines += [json.dumps(record, ensure_ascii=False).encode("utf-8", "replace") + b"\n" for record in records]
        if time.monotonic() - self._written >= SECONDS:
            self.sync()

    def sync(self) -> None:
        """On return everything added so far is on the disk."""
        self._file.write(b"".join(self._lines))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._lines, self._written = [], time.monotonic()


class Done:
    """Where the last line of each row is, in the journals of all processes; read as it is made."""

    def __init__(self, folder: Path, rows: int):
        self._files = sorted(folder.glob("*.jsonl"))
        self._file = np.full(rows, -1, dtype=np.int16)
        self._start = np.zeros(rows, dtype=np.int64)
        self.references = False  # whether any row has some
        self.failed: set[int] = set()  # rows without a text
        self.retried: set[int] = set()  # those of them that were tried twice
        for number, path in enumerate(self._files):
            end, start = _whole(path), 0
            with path.open("rb") as file:
                for line in file:
                    if start + len(line) > end:
                        break
                    self._note(number, start, json.loads(line))
                    start += len(line)

    def _note(self, file: int, start: int, record: Record) -> None:
        if "settings" in record:
            return
        row = record["row"]
        if self._file[row] >= 0 and row not in self.failed:
            return  # a text stays
        self._file[row], self._start[row] = file, start
        self.references |= bool(record["references"])
        (self.failed.add if record["text"] is None else self.failed.discard)(row)
        (self.retried.add if record["text"] is None and record["tries"] > 1 else self.retried.discard)(row)

    def missing(self, rows: np.ndarray) -> np.ndarray:
        """Those of these rows of which there is no line."""
        return rows[self._file[rows] < 0]

    def records(self, rows: Iterable[int] | None = None) -> Iterator[Record]:
        """The records of these rows, one by one; by default of all that there are, in order."""
        files = [path.open("rb") for path in self._files]
        try:
            for row in np.flatnonzero(self._file >= 0) if rows is None else rows:
                file = files[self._file[row]]
                file.seek(self._start[row])
                yield json.loads(file.readline())
        finally:
            for file in files:
                file.close()


def check_parts(folder: Path, settings: Record) -> None:
    """Raises InferError that names what differs, if what is in the folder was done with other settings."""
    for path in sorted(folder.glob("*.jsonl")):
        with path.open("rb") as file:
            line = file.readline()
        if line.endswith(b"\n"):
            check(json.loads(line)["settings"], settings, folder)


def check(before: Record, now: Record, place: Path) -> None:
    """Raises InferError that names what differs."""
    differing = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    if differing:
        changes = ", ".join(f"{name} was {before.get(name)!r} and is {now.get(name)!r}" for name in differing)
        raise InferError(f"{place} was made otherwise ({changes}); give what it was, or start anew with --overwrite")


def _whole(path: Path) -> int:
    """How many bytes of a file are whole lines."""
    with path.open("rb") as file:
        position = file.seek(0, os.SEEK_END)
        while position > 0:
            start = max(0, position - 65536)
            file.seek(start)
            found = file.read(position - start).rfind(b"\n")
            if found >= 0:
                return start + found + 1
            position = start
    return 0
