"""A CSV file as rows with the lines they start on: UTF-8, separated by `,` `;` or tab, with a header or without."""

import csv
import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from vlm_data.image_folder import ImageFolder
from vlm_data.images import looks_like_image
from vlm_data.schema import BadRow, DataError, Rejected

IMAGE_COLUMNS = ("image_name", "file_name", "image", "image_id")  # the first one that is there names the image
_TEXT_COLUMNS = ("caption", "question", "answer")
_ID_EXTENSIONS = (".jpg", ".png", ".jpeg")  # an image_id mostly comes without one


class CsvTable:
    """header: the column names in lower case, or None where the first record already begins with an image's name.

    Raises DataError for a file that is empty, not UTF-8 or no CSV, and for a column that is there twice.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._text = _text(path)
        # Not csv.Sniffer, which the text of a caption can mislead: the first record tells.
        firsts = {delimiter: self._first(delimiter) for delimiter in ",;\t"}
        self.delimiter = max(firsts, key=lambda delimiter: _recognised(firsts[delimiter]))
        first = firsts[self.delimiter]
        if not first:
            raise DataError(f"{path}: the first line is not a readable CSV record; check its quotes")
        self.header = None if _is_headerless(first) else [name.strip().lower() for name in first]
        for name in self.header or ():
            if self.header.count(name) > 1:
                raise DataError(f"{path}: the column {name!r} is there twice")

    def has(self, column: str) -> bool:
        """Whether there is a header with this column and one that names the image."""
        return self.header is not None and column in self.header and not set(IMAGE_COLUMNS).isdisjoint(self.header)

    def rows(
        self,
        image_dir: str | os.PathLike | None,
        needed: str,
        texts: Callable[[dict[str, str]], tuple[str | None, list[str]]],
    ) -> Iterator[dict | Rejected]:
        """For each record a row, whose prompt and references `texts` takes from the record's cells by column name.

        image_dir: where the images are; default: the table's own folder. needed: the column that must be there.
        Without a header the columns are the image's name and then `needed`, which may hold the delimiter.
        """
        if self.header is not None and not self.has(needed):
            raise DataError(
                f"{self.path}: columns found: {', '.join(self.header)[:200]}; "
                f"needed: {needed} and one of {', '.join(IMAGE_COLUMNS)}"
            )
        header = self.header or ["image_name", needed]
        image_column = next(column for column in IMAGE_COLUMNS if column in header)
        images = ImageFolder(image_dir or self.path.parent)
        for line, cells in self._body():
            source = f"{self.path}:{line}"
            try:
                fields = self._fields(header, cells)
                prompt, references = texts(fields)
                image = {"path": images.find(*_file_names(fields[image_column], image_column)), "bytes": None}
            except BadRow as error:
                yield Rejected(source, str(error))
            else:
                yield {
                    "id": f"{self.path.stem}-{line}",
                    "image": image,
                    "prompt": prompt,
                    "references": references,
                    "source": source,
                }

    def _fields(self, header: list[str], cells: list[str] | csv.Error) -> dict[str, str]:
        if isinstance(cells, csv.Error):
            raise BadRow(f"not a readable CSV record ({cells}); check its quotes")
        if self.header is None:
            cells = [cells[0], self.delimiter.join(cells[1:])]
        surplus = cells[len(header) :]
        if len(cells) < len(header) or any(cell.strip() for cell in surplus):
            raise BadRow(f"{len(cells)} cells for {len(header)} columns; quote a text that holds {self.delimiter!r}")
        return {name: cell.strip() for name, cell in zip(header, cells, strict=False)}

    def _first(self, delimiter: str) -> list[str]:
        cells = next(self._records(delimiter))[1]
        return [] if isinstance(cells, csv.Error) else cells

    def _body(self) -> Iterator[tuple[int, list[str] | csv.Error]]:
        records = self._records(self.delimiter)
        if self.header is not None:
            next(records)
        return records

    def _records(self, delimiter: str) -> Iterator[tuple[int, list[str] | csv.Error]]:
        """(line on which it starts, cells, or why there are none) of each record that is not a blank line."""
        # strict: else a stray quote would pass, and an open one take in the rest of the file as a caption
        reader = csv.reader(io.StringIO(self._text, newline=""), delimiter=delimiter, strict=True)
        start = 1
        while True:
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                cells = error
            if cells != []:
                yield start, cells
            start = reader.line_num + 1


def filled(fields: dict[str, str], column: str) -> str:
    """The text of a cell. Raises BadRow if it is empty."""
    if not fields[column]:
        raise BadRow(f"{column} is empty")
    return fields[column]


def _text(path: Path) -> str:
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        found = f"byte 0x{data[error.start]:02x} at offset {error.start}"
        raise DataError(f"{path}:{line}: not UTF-8 ({found}); save the file as UTF-8") from error
    if not text.strip():
        raise DataError(f"{path}: the file is empty")
    return text


def _is_headerless(first: list[str]) -> bool:
    return len(first) > 1 and looks_like_image(first[0].strip())


def _recognised(first: list[str]) -> tuple[int, int]:
    """How well a first record fits: by its known columns (the name of an image counts as two), then by its length."""
    known = sum(name.strip().lower() in IMAGE_COLUMNS + _TEXT_COLUMNS for name in first)
    return 2 if _is_headerless(first) else known, len(first)


def _file_names(cell: str, column: str) -> list[str]:
    if column == "image_id" and cell and not looks_like_image(cell):
        return [cell + extension for extension in _ID_EXTENSIONS]
    return [cell]
