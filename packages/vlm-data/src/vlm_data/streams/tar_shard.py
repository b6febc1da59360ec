"""A WebDataset shard: a tar file in which neighbours of one key (the name up to its first dot) are one sample."""

import tarfile
from array import array
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np

from vlm_data.image_folder import ImageFolder
from vlm_data.images import looks_like_image
from vlm_data.schema import BadRow, DataError, Rejected
from vlm_data.sources import conversations
from vlm_data.streams.indexed_shard import IndexedShard
from vlm_data.streams.rows import row_of
from vlm_data.text_files import parse_json

_LARGEST = 1 << 28  # bytes of one member
_DAMAGE = (tarfile.TarError, EOFError, ValueError, OverflowError, RecursionError)


class TarShard(IndexedShard):
    """Raises tarfile.TarError or OSError if not even the first header can be read."""

    block = 64  # some megabytes, long enough to be read at the speed of the disk

    def _index(self) -> np.ndarray:
        return _starts(self.path)

    def read(self, positions: Iterable[int]) -> Iterator[dict | Rejected]:
        images = ImageFolder(self._image_dir, search=False)
        with self.path.open("rb") as file:
            for position in positions:
                start = int(self._starts[position])
                source = f"{self.path} at byte {start}"
                try:
                    key, members = _sample(file, start)
                    source = f"{self.path}:{key}"
                    record, columns = _record(members, self._columns)
                    yield row_of(record, f"{self.path.stem}-{key}", source, columns, images)
                except (BadRow, DataError) as error:
                    yield Rejected(source, str(error))


def _starts(path: Path) -> np.ndarray:
    """The byte at which each sample begins.

    Where the file is damaged, one more start is given, and reading there says so: tarfile itself takes a header that it
    cannot read for the end, and what comes after it would be missing without a word.
    """
    starts, last, at = array("Q"), None, -1
    with path.open("rb") as file, tarfile.TarFile(fileobj=file) as tar:
        while True:
            end = tar.offset
            try:
                member = tar.next()
            except _DAMAGE:
                break
            if member is None or member.size < 0 or member.offset <= at:  # what leads backwards would never end
                break
            at = member.offset
            tar.members.clear()  # or every header of the shard would stay in memory
            if _is_part(member):
                if _key(member) != last:
                    starts.append(member.offset)
                last = _key(member)
        file.seek(end)
        if file.read(tarfile.BLOCKSIZE).strip(b"\0"):
            starts.append(end)
    return np.array(starts, dtype=np.uint64)


def _sample(file: BinaryIO, start: int) -> tuple[str, dict[str, bytes | str]]:
    """(key, {extension: content, or in words why there is none}) of the sample that begins at this byte.

    Nothing is written to disk, and links in the tar are not followed. Raises BadRow where the file is damaged.
    """
    file.seek(start)
    key, members = None, {}
    try:
        with tarfile.TarFile(fileobj=file) as tar:  # reads on from where the file stands
            while (member := tar.next()) is not None:
                if member.size < 0:
                    raise tarfile.ReadError("a header leads backwards")
                if not _is_part(member):
                    continue
                if key is None:
                    key = _key(member)
                elif _key(member) != key:
                    break
                extension = member.name.rpartition("/")[2].partition(".")[2].lower()
                if extension in members:
                    members[extension] = f"{member.name} is there twice"
                elif member.issparse() or member.size > _LARGEST:  # a sparse member may claim any size
                    members[extension] = f"{member.name} is too large or sparse"
                else:
                    members[extension] = tar.extractfile(member).read()
    except (*_DAMAGE, OSError) as error:
        raise BadRow(f"{f'{key}: ' if key else ''}the shard is cut off or damaged here ({error})") from error
    if key is None:
        raise BadRow("the shard is damaged here: no header; the rest of it cannot be read")
    return key, members


def _is_part(member: tarfile.TarInfo) -> bool:
    return member.isfile() and not member.name.rpartition("/")[2].startswith((".", "__"))


def _key(member: tarfile.TarInfo) -> str:
    folder, slash, name = member.name.removeprefix("./").rpartition("/")
    return folder + slash + name.partition(".")[0]


def _record(
    members: dict[str, bytes | str], columns: Mapping[str, str] | None
) -> tuple[dict, Mapping[str, str] | None]:
    """The values of a sample by name (its .json, its .txt as "caption", its images), and which are the row's."""
    for problem in members.values():
        if isinstance(problem, str):
            raise BadRow(problem)
    record: dict = {}
    images = [extension for extension in members if looks_like_image(f".{extension}")]
    if "json" in members:
        record = parse_json(_text(members, "json"), "its .json")
        if not isinstance(record, dict):
            raise BadRow(f"its .json is no object but {type(record).__name__}")
    if columns is None and conversations.matches(record):
        return {**record, "images": [members[name] for name in images]}, None
    if len(images) != 1:
        raise BadRow(f"{len(images)} images among its files ({', '.join(members)[:100]}); a row has one")
    if "txt" in members:
        record.setdefault("caption", _text(members, "txt"))
    elif "json" not in members and (columns or {}).get("references") != "":  # unless the images alone are asked for
        raise BadRow(f"no .txt or .json among its files ({', '.join(members)[:100]})")
    return {**record, images[0]: members[images[0]]}, {"image": images[0], **(columns or {})}


def _text(members: dict[str, bytes], name: str) -> str:
    try:
        return members[name].decode("utf-8-sig")
    except UnicodeDecodeError:
        raise BadRow(f".{name} is not UTF-8") from None
