"""A WebDataset shard: a tar file in which neighbours of one key (the name up to its first dot) are one sample."""

import json
import tarfile
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from vlm_data.image_folder import ImageFolder
from vlm_data.images import looks_like_image
from vlm_data.schema import BadRow, Rejected
from vlm_data.streams.indexed_shard import IndexedShard
from vlm_data.streams.rows import row_of


class TarShard(IndexedShard):
    """Raises tarfile.TarError or OSError if not even the first header can be read."""

    block = 64  # some megabytes, long enough to be read at the speed of the disk

    def _index(self) -> np.ndarray:
        return _starts(self.path)

    def read(self, positions: Iterable[int]) -> Iterator[dict | Rejected]:
        images = ImageFolder(self._image_dir)
        with self.path.open("rb") as file:
            for position in positions:
                start = int(self._starts[position])
                source = f"{self.path} at byte {start}"
                try:
                    key, members = _sample(file, start)
                    source = f"{self.path}:{key}"
                    record, image = _record(members)
                    columns = {"image": image, **(self._columns or {})}
                    yield row_of(record, f"{self.path.stem}-{key}", source, columns, images)
                except BadRow as error:
                    yield Rejected(source, str(error))


def _starts(path: Path) -> np.ndarray:
    """The byte at which each sample begins.

    Where the file is damaged, one more start is given, and reading there says so: tarfile itself takes a header that it
    cannot read for the end, and what comes after it would be missing without a word.
    """
    starts, last = array("Q"), None
    with path.open("rb") as file, tarfile.TarFile(fileobj=file) as tar:
        while True:
            end = tar.offset
            try:
                member = tar.next()
            except tarfile.TarError:
                member = None
            if member is None:
                break
            tar.members.clear()  # or every header of the shard would stay in memory
            if _is_part(member):
                if _key(member) != last:
                    starts.append(member.offset)
                last = _key(member)
        file.seek(end)
        if file.read(tarfile.BLOCKSIZE).strip(b"\0"):
            starts.append(end)
    return np.array(starts, dtype=np.uint64)


def _sample(file: BinaryIO, start: int) -> tuple[str, dict[str, bytes]]:
    """(key, {extension: content}) of the sample that begins at this byte."""
    file.seek(start)
    key, members = None, {}
    try:
        with tarfile.TarFile(fileobj=file) as tar:  # reads on from where the file stands
            while (member := tar.next()) is not None:
                if not _is_part(member):
                    continue
                if key is None:
                    key = _key(member)
                elif _key(member) != key:
                    break
                extension = member.name.rpartition("/")[2].partition(".")[2]
                members[extension.lower()] = tar.extractfile(member).read()
    except (tarfile.TarError, OSError) as error:
        raise BadRow(f"{f'{key}: ' if key else ''}the shard is cut off or damaged here ({error})") from error
    if key is None:
        raise BadRow("the shard is damaged here: no header; the rest of it cannot be read")
    return key, members


def _is_part(member: tarfile.TarInfo) -> bool:
    return member.isfile() and not member.name.rpartition("/")[2].startswith((".", "__"))


def _key(member: tarfile.TarInfo) -> str:
    folder, slash, name = member.name.removeprefix("./").rpartition("/")
    return folder + slash + name.partition(".")[0]


def _record(members: dict[str, bytes]) -> tuple[dict, str]:
    """The values of a sample by name (its .json, its .txt as "caption", its image), and the image's name."""
    record = {}
    image = next((extension for extension in members if looks_like_image(f".{extension}")), None)
    if image is None:
        raise BadRow(f"no image among its files ({', '.join(members)})")
    try:
        if "json" in members:
            record = json.loads(members["json"])
            if not isinstance(record, dict):
                raise BadRow(f"its .json is a {type(record).__name__}, not an object")
        if "txt" in members:
            record.setdefault("caption", members["txt"].decode())
    except (ValueError, RecursionError) as error:
        raise BadRow(f"its .json or .txt cannot be read ({error})") from error
    return {**record, image: members[image]}, image
