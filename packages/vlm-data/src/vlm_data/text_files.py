"""Text files as people have them: UTF-8, UTF-16 or, with a warning, Latin-1; and the JSON in them."""

import codecs
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from vlm_data.schema import DataError

_LOG = logging.getLogger("vlm_data")
_CHUNK = 1 << 20  # bytes: a large table is never in memory as a whole
_PACKED = {
    b"PK\x03\x04": "a zip archive or Excel's; unpack it, or save the table as CSV",
    b"\x1f\x8b": "packed by gzip; unpack it",
    b"(\xb5/\xfd": "packed by zstd; unpack it",
    b"%PDF": "a PDF",
    b"PAR1": "Parquet; let its name end in .parquet",
}
_LONGEST_LINE = 1 << 27  # characters of one JSON record


class TextFile:
    """A text file and its encoding: by its byte order mark; UTF-8 if it is that throughout; else Latin-1.

    Latin-1 is here what spreadsheets write, Windows-1252. Almost any bytes would pass as that, so `warn` says so.
    Raises DataError for a file that cannot be read, is not text, or begins with UTF-8's mark and is not UTF-8.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._problem = None  # what keeps it from being UTF-8
        if not path.is_file():  # opening a pipe would wait for ever
            raise DataError(f"{path}: no such file")
        try:
            with path.open("rb") as file:
                self.encoding = self._encoding(file)
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror}") from error

    def warn(self) -> None:
        """Log that the encoding is a guess, if it is."""
        if self._problem is not None:
            message = "%s: not UTF-8 (%s); read as Latin-1: save it as UTF-8 if its letters look wrong"
            _LOG.warning(message, self.path, self._problem)

    def open(self) -> TextIO:
        """The text, with its line ends as they are."""
        # Windows-1252 leaves five bytes undefined.
        errors = "replace" if self.encoding == "cp1252" else "strict"
        return self.path.open(encoding=self.encoding, errors=errors, newline="")

    def _encoding(self, file: BinaryIO) -> str:
        head = file.read(4)
        if kind := next((kind for start, kind in _PACKED.items() if head.startswith(start)), None):
            raise DataError(f"{self.path}: not text but {kind}")
        if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            return "utf-16"
        zeros = [byte == 0 for byte in head]
        if zeros in ([False, True] * 2, [True, False] * 2):  # Latin letters of two bytes each, without a mark
            return "utf-16-be" if zeros[0] else "utf-16-le"
        file.seek(0)
        self._problem = _first_not_utf8(file)
        if self._problem is None:
            return "utf-8-sig"
        file.seek(0)
        binary = any(b"\0" in chunk for chunk in iter(lambda: file.read(_CHUNK), b""))
        if binary or head.startswith(codecs.BOM_UTF8):
            kind = "not a text file" if binary else "not UTF-8, though its first bytes say so"
            raise DataError(f"{self.path}: {kind} ({self._problem}); save it as UTF-8 text")
        return "cp1252"


def read_text(path: Path) -> str:
    """The whole text of a small file, without a byte order mark. Raises DataError as `TextFile` does."""
    text = TextFile(path)
    text.warn()
    try:
        with text.open() as file:
            return file.read()
    except (OSError, UnicodeError) as error:
        raise DataError(f"{path} cannot be read as text: {error}") from error


def read_json(path: Path) -> Any:
    """The content of a JSON file. Raises DataError with the line at fault."""
    return parse_json(read_text(path), f"{path}")


def parse_json(text: str, source: str, slim: Callable[[dict], Any] | None = None) -> Any:
    """The value of a JSON text, with what `slim` makes of each object in its place, so that not all of a large file is
    held. Raises DataError that begins with the source.
    """
    try:
        return json.loads(text, object_hook=slim)
    except RecursionError:
        raise DataError(f"{source}: JSON nested too deeply") from None
    except ValueError as error:
        raise DataError(f"{source}: not JSON ({error})") from None


def json_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number, text) of each line that is not blank; read one by one."""
    text = TextFile(path)
    text.warn()
    try:
        with text.open() as file:
            number = 0
            while line := file.readline(_LONGEST_LINE):
                number += 1
                if len(line) == _LONGEST_LINE:
                    raise DataError(f"{path}:{number}: longer than {_LONGEST_LINE:,} characters")
                if line.strip():
                    yield number, line
    except (OSError, UnicodeError) as error:
        raise DataError(f"{path} cannot be read as text: {error}") from error


def _first_not_utf8(file: BinaryIO) -> str | None:
    """Where a file stops being UTF-8, in words."""
    decoder, line = codecs.getincrementaldecoder("utf-8")(), 1
    while True:
        chunk = file.read(_CHUNK)
        try:
            decoder.decode(chunk, final=not chunk)
        except UnicodeDecodeError as error:
            at = line + error.object[: error.start].count(b"\n")
            return f"byte 0x{error.object[error.start]:02x} on line {at}"
        if not chunk:
            return None
        line += chunk.count(b"\n")
