"""Open a source by its name or path as rows of one schema."""

import difflib
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import datasets

from vlm_data.csv_table import CsvTable
from vlm_data.schema import FEATURES, DataError, Rejected, reject
from vlm_data.sources import caption_csv, easy_vqa, file_names, image_csv, question_csv

SOURCES = ("easy-vqa", "scenes")
READERS = {
    "captions-csv": caption_csv.read,
    "questions-csv": question_csv.read,
    "images-csv": image_csv.read,
    "file-names": file_names.read,
}


def open(
    data: str | os.PathLike,
    *,
    split: str | None = None,
    image_dir: str | os.PathLike | None = None,
    format: str = "auto",
    rejected: list[Rejected] | None = None,
    seed: int = 0,
    size: int | None = None,
) -> datasets.Dataset:
    """The rows of a source, with the columns of `FEATURES`; images are not decoded yet.

    data: "easy-vqa", "scenes", or the path of a CSV file or a folder ("./scenes" for a folder of such a name).
    split: of a named source; default "train".
    image_dir: the images of a CSV; default: the CSV's own folder.
    format: "captions-csv", "questions-csv", "images-csv", "file-names", or "auto" to tell it from path and header.
    rejected: None raises DataError at the first bad row; to a list, the bad rows are appended, and reading goes on.
    seed, size: of "scenes" only.

    Raises DataError for data that cannot be read as asked, and for data without rows.
    """
    if size is not None and data != "scenes":
        raise DataError(f"{data}: size is for scenes only; take rows.select(range({size}))")
    if data in SOURCES:
        if image_dir is not None or format != "auto":
            raise DataError(f"{data} is a source of its own: image_dir and format are for paths")
        items = _named(data, split or "train", seed, size)
    else:
        if split is not None:
            raise DataError(f"{data} has no split {split!r}, only {' and '.join(SOURCES)} have; use vlm_data.split")
        items = _reader(Path(data), format)(Path(data), image_dir)
    rows, empty = [], True
    for item in items:
        empty = False
        if isinstance(item, Rejected):
            reject(item, rejected)
        else:
            rows.append(item)
    if empty:
        raise DataError(f"{data}: there are no {'images' if Path(data).is_dir() else 'rows'} in it")
    return datasets.Dataset.from_dict({name: [row[name] for row in rows] for name in FEATURES}, features=FEATURES)


def _named(name: str, split: str, seed: int, size: int | None) -> Iterable[dict]:
    if name == "easy-vqa":
        return easy_vqa.read(split)
    from vlm_data.sources import scenes

    return scenes.read(split=split, seed=seed, **({} if size is None else {"size": size}))


def _reader(path: Path, format: str) -> Callable[[Path, str | os.PathLike | None], Iterator[dict | Rejected]]:
    if format not in ("auto", *READERS):
        raise DataError(f"unknown format {format!r}{_nearest(format, READERS)}; known: auto, {', '.join(READERS)}")
    if not path.exists():
        siblings = os.listdir(path.parent) if path.parent.is_dir() else []
        near = _nearest(path.name, [*SOURCES, *siblings])
        raise DataError(f"{path}: no such file or folder{near}; named sources: {', '.join(SOURCES)}")
    if format == "auto":
        format = _folder_format(path) if path.is_dir() else _file_format(path)
    if path.is_dir() != (format == "file-names"):
        raise DataError(f"{path}: format {format!r} reads a {'folder' if format == 'file-names' else 'file'}")
    return READERS[format]


def _folder_format(folder: Path) -> str:
    tables = sorted(path.name for path in folder.iterdir() if path.suffix.lower() in (".csv", ".tsv"))
    if tables:  # beside a table, the images' names are hardly their captions
        raise DataError(f"{folder} holds {tables[0]}: give that file's path, or format='file-names'")
    return "file-names"


def _file_format(path: Path) -> str:
    table = CsvTable(path)
    if table.has("question"):
        return "questions-csv"
    # Whatever else is not a caption table either is refused by its reader, which names the columns.
    return "captions-csv"


def _nearest(name: str, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, names)
    return f" (nearest: {', '.join(near)})" if near else ""
