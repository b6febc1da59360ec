"""Open a source by its name or path as rows of one schema."""

import difflib
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import datasets

from vlm_data import columns as column_names
from vlm_data import parts
from vlm_data.image_folder import ImageFolder
from vlm_data.recognising import part_names, recognise, tables
from vlm_data.request import Request
from vlm_data.schema import BadRow, DataError, Rejected
from vlm_data.sources import (
    caption_csv,
    caption_folders,
    coco_captions,
    conversations,
    easy_vqa,
    file_names,
    hub_datasets,
    image_csv,
    image_folder_metadata,
    json_records,
    parquet,
    question_csv,
    vqa_v2,
    web_dataset,
)
from vlm_data.tabulate import tabulate

_LOG = logging.getLogger("vlm_data")
SOURCES = ("easy-vqa", "scenes")
READERS = {
    "captions-csv": caption_csv.read,
    "questions-csv": question_csv.read,
    "images-csv": image_csv.read,
    "file-names": file_names.read,
    "caption-folders": caption_folders.read,
    "image-folder": image_folder_metadata.read,
    "coco-captions": coco_captions.read,
    "vqa-v2": vqa_v2.read,
    "conversations": conversations.read,
    "json-records": json_records.read,
    "parquet": parquet.read,
    "webdataset": web_dataset.read,
    "datasets": hub_datasets.read,
}
_FOLDERS = ("file-names", "caption-folders", "image-folder", "datasets")  # formats that are a folder
_EITHER = ("parquet", "webdataset")


def open(
    data: str | os.PathLike,
    *,
    split: str | None = None,
    image_dir: str | os.PathLike | None = None,
    format: str = "auto",
    columns: str | Mapping[str, str] | None = None,
    rejected: list[Rejected] | None = None,
    seed: int = 0,
    size: int | None = None,
) -> datasets.Dataset:
    """The rows of a source, with the columns of `FEATURES`; images are not decoded yet.

    data: "easy-vqa", "scenes", or the path of a file or a folder ("./scenes" for a folder of such a name); with
        format="datasets" also the name of a data set on the Hugging Face hub.
    split: of data that has parts (see `splits`); default "train".
    image_dir: where the images are; default: with the file that names them.
    format: one of `READERS`, or "auto" to tell it from the path and what is there; what was told is logged as info.
    columns: "image=…,prompt=…,references=…": the names of a table's columns, where they are not the usual ones.
    rejected: None raises DataError at the first bad row; to a list, the bad rows are appended, and reading goes on.
    seed, size: of "scenes" only.

    Raises DataError for data that cannot be read as asked, and for data without rows.
    """
    if size is not None and data != "scenes":
        raise DataError(f"{data}: size is for scenes only; take rows.select(range({size}))")
    if data in SOURCES:
        if image_dir is not None or format != "auto" or columns is not None:
            raise DataError(f"{data} is a source of its own: image_dir and format are for paths")
        items = _named(data, split or "train", seed, size)
    else:
        columns = column_names.parse(columns) if isinstance(columns, str) else columns
        items = _read(Request(Path(data), image_dir, columns, split), format)
    rows = tabulate(items, rejected)
    if rows is None:
        raise DataError(f"{data}: there are no {'images' if Path(data).is_dir() else 'rows'} in it")
    return rows


def splits(data: str | os.PathLike) -> list[str]:
    """The parts that `open` can be asked for: of "train", "validation" and "test"; empty if the data is one whole."""
    if data in SOURCES:
        return ["train", "test"]
    return part_names(Path(data)) if Path(data).is_dir() else []


def _named(name: str, split: str, seed: int, size: int | None) -> Iterable[dict]:
    if name == "easy-vqa":
        return easy_vqa.read(split)
    from vlm_data.sources import scenes

    return scenes.read(split=split, seed=seed, **({} if size is None else {"size": size}))


def _read(asked: Request, format: str) -> Iterator[dict | Rejected]:
    if format not in ("auto", *READERS):
        raise DataError(f"unknown format {format!r}{_nearest(format, READERS)}; known: auto, {', '.join(READERS)}")
    path = asked.path
    if format == "datasets" and not path.exists():
        return READERS[format](asked)
    if not path.exists():
        siblings = os.listdir(path.parent) if path.parent.is_dir() else []
        near = _nearest(path.name, [*SOURCES, *siblings])
        raise DataError(
            f"{path}: no such file or folder{near}; named sources: {', '.join(SOURCES)}; "
            "format='datasets' for one of the Hugging Face hub"
        )
    has = part_names(path) if path.is_dir() and (format == "auto" or asked.split is not None) else []
    if asked.split is not None and asked.split not in has:
        found = f"its splits are {', '.join(has)}" if has else "it has none; use vlm_data.split"
        raise DataError(f"{path} has no split {asked.split!r}: {found}")
    return _part(asked, format, asked.split or "train") if has else _whole(asked, format)


def _whole(asked: Request, format: str) -> Iterator[dict | Rejected]:
    if format == "auto":
        found = recognise(asked.path, asked.columns)
        _LOG.info("%s: read as %s: %s; another one can be named as format", found.path, found.format, found.why)
        asked, format = replace(asked, path=found.path), found.format
    if format not in _EITHER and asked.path.is_dir() != (format in _FOLDERS):
        raise DataError(f"{asked.path}: format {format!r} reads a {'folder' if format in _FOLDERS else 'file'}")
    return READERS[format](asked)


def _part(asked: Request, format: str, split: str) -> Iterator[dict | Rejected]:
    """One part of a folder that has several: from a table of its own, its folder, or a table that all parts share."""
    root = ImageFolder(asked.path)
    folders, files = parts.part_folders(asked.path), parts.part_files(tables(asked.path))
    shared = [file for file in tables(asked.path) if parts.split_of(file.name) is None]
    for path in [*folders.values(), *tables(asked.path)]:
        try:
            root.inside(str(path))
        except BadRow as error:
            raise DataError(f"{asked.path}: {error}; give that path itself") from error
    if {file.suffix.lower() for file in files.get(split, [])} in ({".parquet"}, {".tar"}):  # perhaps many shards
        return _whole(replace(asked, split=split), format)
    if len(files.get(split, [])) > 1:
        raise DataError(f"{asked.path}: several tables of {split}: {', '.join(map(str, files[split][:3]))}; give one")
    if split in files:
        own_dir = folders.get(split, asked.path)
        return _whole(replace(asked, path=files[split][0], image_dir=asked.image_dir or own_dir), format)
    if len(shared) == 1 and folders and asked.image_dir is None:
        table = replace(asked, path=shared[0])
        anywhere, in_train = (
            _whole(replace(table, image_dir=folder), format) for folder in (asked.path, folders["train"])
        )
        return parts.shared_table(anywhere, in_train, folders, split)
    return _whole(replace(asked, path=folders[split]), format)


def _nearest(name: str, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, names)
    return f" (nearest: {', '.join(near)})" if near else ""
