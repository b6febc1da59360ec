"""Rows to infer on: from images, folders, tables and annotation files, or shards; read a few at a time."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from datasets import Dataset

import vlm_data
from vlm_data import DataError, Rejected
from vlm_data.columns import parse
from vlm_data.image_folder import ImageFolder, files_below
from vlm_data.images import looks_like_image
from vlm_data.schema import BadRow
from vlm_data.tabulate import tabulate
from vlm_infer.errors import InferError

Row = dict[str, Any]
AT_ONCE = 64  # rows out of a table: their images may be in them
PEEKED = 8  # rows of a stream, to see whether they have texts


@dataclass(frozen=True)
class Inputs:
    """The options that say what the rows are; one of the first four is given.

    image: files. images: a folder, searched to the bottom. data: what `vlm_data.open` reads. stream: what
    `vlm_data.stream` reads. question: asked of every image, in place of its own. The others are options of these two.
    """

    image: tuple[Path, ...] = ()
    images: Path | None = None
    data: str | None = None
    stream: str | None = None
    image_dir: Path | None = None
    format: str = "auto"
    split: str | None = None
    columns: str | None = None
    question: str | None = None

    @property
    def place(self) -> str:
        """What the rows are read from, for messages."""
        return str(self.data or self.stream or self.images or ", ".join(map(str, self.image)))


class Rows(Protocol):
    """Rows by their position, in the order of the output. `fingerprint` is equal for equal rows."""

    fingerprint: str

    def __len__(self) -> int: ...

    def read(self, positions: Sequence[int]) -> Iterator[Row | Rejected]:
        """What is at each of these positions, or why there is no row."""


class TableRows:
    """Rows of a data set: in memory, as a rule without their images."""

    def __init__(self, rows: Dataset):
        self.fingerprint = rows._fingerprint
        self._rows = rows.with_format("arrow")

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, positions: Sequence[int]) -> Iterator[Row]:
        for start in range(0, len(positions), AT_ONCE):
            yield from self._rows[[int(position) for position in positions[start : start + AT_ONCE]]].to_pylist()


class StreamRows:
    """Rows of shards, in the order that they are stored in."""

    def __init__(self, stream: vlm_data.Stream):
        self._stream, self.fingerprint = stream, stream.fingerprint

    def __len__(self) -> int:
        return len(self._stream)

    def read(self, positions: Sequence[int]) -> Iterator[Row | Rejected]:
        return self._stream.read(np.asarray(positions))


class AskedRows:
    """Rows with one question in place of their own, which their references may not answer."""

    def __init__(self, rows: Rows, question: str, keep_references: bool):
        self._rows, self._question, self._keep = rows, question, keep_references
        self.fingerprint = rows.fingerprint

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, positions: Sequence[int]) -> Iterator[Row | Rejected]:
        for row in self._rows.read(positions):
            if isinstance(row, dict):
                # No turns of a conversation, which would be asked in place of it.
                row = {name: row[name] for name in vlm_data.FEATURES}
                row |= {"prompt": self._question, "references": row["references"] if self._keep else []}
            yield row


def open_rows(inputs: Inputs) -> tuple[Rows, list[Rejected]]:
    """The rows in the order they are given, and those of a table that cannot be used.

    Raises:
        DataError, ImageError, InferError: nothing can be read there.
    """
    rejected: list[Rejected] = []
    if inputs.stream is not None:
        rows = StreamRows(_stream(inputs))
    else:
        if inputs.image:
            found = _images(inputs.image)
        elif inputs.images is not None:
            found = tabulate(_folder(inputs.images), rejected)
        else:
            found = _data(inputs, rejected)
        if found is None or len(found) == 0:
            first = f"; the first: {rejected[0].source}: {rejected[0].reason}" if rejected else ""
            kind = "images" if inputs.images else "rows"
            raise InferError(f"{inputs.place}: there are no {kind} in it that can be read{first}")
        rows = TableRows(found)
    if inputs.question is not None:
        rows = AskedRows(rows, inputs.question, "references" in (inputs.columns or ""))
    return rows, rejected


def _images(paths: Sequence[Path]) -> Dataset:
    for path in paths:
        vlm_data.decode(str(path))  # named one by one: its error is the command's error
    return tabulate((_picture(str(path), path.name, str(path)) for path in paths), None)


def _folder(folder: Path) -> Iterator[Row | Rejected]:
    if not folder.is_dir():
        raise InferError(f"--images {folder}: no such folder; --image is for single files")
    images = ImageFolder(folder)
    for name in filter(looks_like_image, files_below(folder)):
        try:
            yield _picture(images.inside(str(images.root / name)), Path(name).as_posix(), str(folder / name))
        except BadRow as error:
            yield Rejected(str(folder / name), str(error))


def _picture(path: str, name: str, source: str) -> Row:
    return {"id": name, "image": {"path": path, "bytes": None}, "prompt": None, "references": [], "source": source}


def _data(inputs: Inputs, rejected: list[Rejected]) -> Dataset:
    """The rows of a table or data set; of one without texts the images."""
    columns = parse(inputs.columns) if inputs.columns else {}
    usual = {"format": inputs.format, "columns": columns or None}
    attempts = [usual, _without_texts(inputs, columns)]
    if inputs.question is not None and "references" not in columns:
        attempts.reverse()  # a row whose own question or answer is empty is as good as any
    errors = {}
    for number, attempt in enumerate(attempts):
        bad: list[Rejected] = []
        try:
            rows = vlm_data.open(inputs.data, split=inputs.split, image_dir=inputs.image_dir, rejected=bad, **attempt)
        except DataError as error:
            errors[number] = error
        else:
            rejected += bad
            return rows
    raise errors[attempts.index(usual)]


def _without_texts(inputs: Inputs, columns: dict[str, str]) -> dict[str, Any]:
    image = {name: column for name, column in columns.items() if name == "image"}
    if inputs.format == "auto" and Path(inputs.data).suffix.lower() in (".csv", ".tsv"):
        return {"format": "images-csv", "columns": image or None}
    return {"format": inputs.format, "columns": {"prompt": "", "references": "", **image}}


def _stream(inputs: Inputs) -> vlm_data.Stream:
    """The stream of the shards; of shards without texts the images."""

    def opened(columns: dict[str, str]) -> vlm_data.Stream:
        return vlm_data.stream(inputs.stream, columns=columns or None, image_dir=inputs.image_dir, shuffle=False)

    columns = parse(inputs.columns) if inputs.columns else {}
    bare = {"prompt": "", "references": "", **columns}
    if inputs.question is not None:
        return opened(bare)
    stream = opened(columns)
    first = list(stream.read(np.arange(min(PEEKED, len(stream)))))
    return stream if any(isinstance(row, dict) for row in first) else opened(bare)
