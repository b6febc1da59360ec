"""A CSV file as rows with the lines they start on: separated by `,` `;` or tab, with a header or without."""

import csv
import difflib
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from vlm_data.image_folder import ImageFolder
from vlm_data.images import looks_like_image
from vlm_data.schema import BadRow, DataError, Rejected, listed
from vlm_data.text_files import TextFile

IMAGE_COLUMNS = ("image_name", "file_name", "image", "image_id")  # the first one that is there names the image
_TEXT_COLUMNS = ("caption", "question", "answer")
_ID_EXTENSIONS = (".jpg", ".png", ".jpeg")  # an image_id mostly comes without one


class CsvTable:
    """header: the column names in lower case, or None where the first record already begins with an image's name.

    columns: the table's own names for the usual ones: {"image": "photo", "prompt": "q", "references": "a"}.
    The file is read record by record and never held as a whole. Raises DataError for a file that is empty, not text or
    no CSV, and for a column that is there twice.
    """

    def __init__(self, path: Path, columns: Mapping[str, str] | None = None) -> None:
        self.path = path
        self._file = TextFile(path)
        # Not csv.Sniffer, which the text of a caption can mislead: the first record tells.
        firsts = {delimiter: self._first(delimiter) for delimiter in ",;\t"}
        usual = {name.strip().lower() for name in (columns or {}).values()}.union(IMAGE_COLUMNS, _TEXT_COLUMNS)
        self.delimiter = max(firsts, key=lambda delimiter: _recognised(firsts[delimiter], usual))
        first = firsts[self.delimiter]
        if not first:
            raise DataError(f"{path}: the first line is not a readable CSV record; check its quotes")
        headerless = _is_headerless(first) and not columns
        self.header = None if headerless else [name.strip().lower() for name in first]
        for name in self.header or ():
            if name and self.header.count(name) > 1:
                raise DataError(f"{path}: the column {name!r} is there twice")
        self._bare_names = "image" in (columns or {})  # may the images' names lack their extensions?
        self._rename(columns or {})

    def has(self, column: str) -> bool:
        """Whether there is a header with this column and one that names the image."""
        return self.header is not None and column in self.header and not set(IMAGE_COLUMNS).isdisjoint(self.header)

    def records(self) -> Iterator[tuple[str, dict[str, str] | Rejected]]:
        """(source, cells by column name, or why there are none) of each record. Raises DataError without a header."""
        if self.header is None:
            raise DataError(f"{self.path}: its first line names no columns")
        self._file.warn()
        for line, cells in self._body():
            source = f"{self.path}:{line}"
            try:
                yield source, self._fields(self.header, cells)
            except BadRow as error:
                yield source, Rejected(source, str(error))

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
                f"{self.path}: columns found: {listed(self.header)}; "
                f"needed: {needed} and one of {', '.join(IMAGE_COLUMNS)}; others are named by columns "
                "'image=NAME,prompt=NAME,references=NAME'"
            )
        self._file.warn()
        header = self.header or ["image_name", needed]
        image_column = next(column for column in IMAGE_COLUMNS if column in header)
        bare = self._bare_names or image_column == "image_id"
        images = ImageFolder(image_dir or self.path.parent)
        for line, cells in self._body():
            source = f"{self.path}:{line}"
            try:
                fields = self._fields(header, cells)
                prompt, references = texts(fields)
                image = {"path": images.find(*_file_names(fields[image_column], bare)), "bytes": None}
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

    def _rename(self, columns: Mapping[str, str]) -> None:
        """Give the chosen columns their usual names; a column that had one of these loses it."""
        for field, name in columns.items():
            usual = {"image": "image_name", "prompt": "question"}.get(field, "caption")
            usual = "answer" if field == "references" and columns.get("prompt", "question" in self.header) else usual
            wanted = name.strip().lower()
            if wanted and wanted not in self.header:
                near = difflib.get_close_matches(wanted, self.header)
                hint = f" (nearest: {', '.join(near)})" if near else ""
                raise DataError(f"{self.path}: no column {name!r}{hint}; columns found: {listed(self.header)}")
            self.header = [
                usual if column == wanted and wanted else "" if column == usual else column for column in self.header
            ]

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
        found = next(self._records(delimiter), None)
        if found is None:
            raise DataError(f"{self.path}: the file is empty")
        return [] if isinstance(found[1], csv.Error) else found[1]

    def _body(self) -> Iterator[tuple[int, list[str] | csv.Error]]:
        records = self._records(self.delimiter)
        if self.header is not None:
            next(records)
        return records

    def _records(self, delimiter: str) -> Iterator[tuple[int, list[str] | csv.Error]]:
        """(line on which it starts, cells, or why there are none) of each record that is not a blank line."""
        with self._file.open() as lines:
            # strict: else a stray quote would pass, and an open one take in the rest of the file as a caption
            reader = csv.reader(lines, delimiter=delimiter, strict=True)
            start = 1
            while True:
                try:
                    cells = next(reader)
                except StopIteration:
                    return
                except csv.Error as error:
                    cells = error
                except UnicodeError as error:
                    raise DataError(f"{self.path}: broken {self._file.encoding} ({error}); save it as UTF-8") from error
                if isinstance(cells, csv.Error) or any(cell.strip() for cell in cells):
                    yield start, cells
                start = reader.line_num + 1


def filled(fields: dict[str, str], column: str) -> str:
    """The text of a cell. Raises BadRow if it is empty."""
    if not fields[column]:
        raise BadRow(f"{column} is empty")
    return fields[column]


def _is_headerless(first: list[str]) -> bool:
    return len(first) > 1 and looks_like_image(first[0].strip())


def _recognised(first: list[str], usual: set[str]) -> tuple[int, int]:
    """How well a first record fits: by its known columns (the name of an image counts as two), then by its length."""
    known = sum(name.strip().lower() in usual for name in first)
    return 2 if _is_headerless(first) else known, len(first)


def _file_names(cell: str, bare: bool) -> list[str]:
    if bare and cell and not looks_like_image(cell):
        return [cell + extension for extension in _ID_EXTENSIONS]
    return [cell]
