"""Tell from a path how it is to be read, and say what that was told from."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vlm_data import json_file, parts
from vlm_data.csv_table import CsvTable
from vlm_data.image_folder import files_below
from vlm_data.schema import DataError, Rejected, listed
from vlm_data.sources import caption_folders, coco_captions, conversations, hub_datasets, image_folder_metadata, vqa_v2

_SHARDS = {".parquet": "parquet", ".tar": "webdataset"}  # formats of which a folder may hold many files
_JSON = (".json", *json_file.LINES)
TABLES = (".csv", ".tsv", *_JSON, *_SHARDS)


@dataclass(frozen=True)
class Recognised:
    """A file or folder and the format to read it in. why: what was seen, for people."""

    path: Path
    format: str
    why: str


def recognise(path: Path, columns: Mapping[str, str] | None = None) -> Recognised:
    """What a path holds. Raises DataError, which says what was seen, if that cannot be told."""
    return _folder(path, columns) if path.is_dir() else _file(path, columns)


def tables(folder: Path) -> list[Path]:
    """The files directly in a folder that hold rows, sorted; hidden ones left out."""
    files = (path for path in sorted(folder.iterdir()) if path.suffix.lower() in TABLES and path.is_file())
    return [path for path in files if not path.name.startswith(".") and path.name not in hub_datasets.FILES]


def part_names(folder: Path) -> list[str]:
    """The train, validation and test parts of a folder, in this order; empty if it has none."""
    found = {**parts.part_files(tables(folder)), **parts.part_folders(folder)}
    return [name for name in parts.NAMES if name in found]


def _folder(folder: Path, columns: Mapping[str, str] | None) -> Recognised:
    saved = [name for name in hub_datasets.FILES if (folder / name).is_file()]
    if saved:
        return Recognised(folder, "datasets", f"it holds {saved[0]}")
    described = image_folder_metadata.metadata(folder)
    if described:
        return Recognised(folder, "image-folder", f"it holds {described[0]}")
    pair = caption_folders.parts(folder)
    if pair is not None:
        return Recognised(folder, "caption-folders", f"it holds {pair[0]}/ and {pair[1]}/")
    found = tables(folder)
    if len(found) == 1:
        return _file(found[0], columns)
    suffixes = {path.suffix.lower() for path in found}
    if len(suffixes) == 1 and suffixes <= _SHARDS.keys():
        suffix = suffixes.pop()
        return Recognised(folder, _SHARDS[suffix], f"it holds {len(found)} {suffix} files")
    if not found:  # beside a table, the images' names are hardly their captions
        deeper = [name for name in files_below(folder) if Path(name).suffix.lower() in TABLES]
        if not deeper:
            return Recognised(folder, "file-names", "it holds images and no table, so their names are the captions")
        found = [folder / name for name in deeper]
    raise DataError(
        f"{folder} holds {' and '.join(path.name for path in found[:2])}: give one file's path, or format='file-names'"
    )


def _file(path: Path, columns: Mapping[str, str] | None) -> Recognised:
    suffix = path.suffix.lower()
    if suffix in _SHARDS:
        return Recognised(path, _SHARDS[suffix], f"a {suffix} file")
    return _json(path) if suffix in _JSON else _csv(path, columns)


def _json(path: Path) -> Recognised:
    content = json_file.content(path)
    if isinstance(content, dict):
        seen = f"an object with {listed(content)}"
        if vqa_v2.matches(content):
            return Recognised(path, "vqa-v2", seen)
        if coco_captions.matches(content):
            return Recognised(path, "coco-captions", seen)
        raise DataError(
            f"{path}: {seen}; needed: images and annotations (COCO), questions (VQAv2), or an array of records"
        )
    first = next((record for _, record in content if not isinstance(record, Rejected)), None)
    if conversations.matches(first):
        return Recognised(path, "conversations", f"records with {listed(first)}")
    seen = f"records with {listed(first)}" if isinstance(first, dict) else "a JSON file"
    return Recognised(path, "json-records", seen)


def _csv(path: Path, columns: Mapping[str, str] | None) -> Recognised:
    table = CsvTable(path, columns)
    if table.header is None:
        return Recognised(path, "captions-csv", "a table without a header, whose first cell names an image")
    seen = f"a table with the columns {listed(table.header)}"
    # Whatever else is not a caption table either is refused by its reader, which names the columns.
    return Recognised(path, "questions-csv" if table.has("question") else "captions-csv", seen)
