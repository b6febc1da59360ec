"""WebDataset: tar files in which neighbours of one name, up to its first dot, are a sample: 7.jpg, 7.txt or 7.json."""

import os
import tarfile
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from vlm_data.columns import Columns
from vlm_data.images import EXTENSIONS
from vlm_data.request import Request
from vlm_data.schema import BadRow, DataError, Rejected
from vlm_data.sources import conversations
from vlm_data.text_files import parse_json

_LARGEST = 1 << 28  # bytes of one member


def read(asked: Request) -> Iterator[dict | Rejected]:
    """One row for each sample of a shard or a folder of shards; its texts are its .txt (a caption) or its .json's.

    Of a shard that is damaged somewhere, what comes before is read; one that is no tar at all raises DataError.
    """
    for shard in asked.files(".tar"):
        last = None
        try:
            for key, members in samples(shard):
                last = key
                yield _row_of(shard, key, members, asked)
        except DataError as error:
            if last is None:
                raise
            yield Rejected(f"{shard}: after {last}", str(error).removeprefix(f"{shard}: "))


def samples(shard: Path) -> Iterator[tuple[str, dict[str, bytes | str]]]:
    """(key, members by extension) of each sample; a member that cannot be read is the reason, as text.

    Nothing is written to disk, and links in the tar are not followed. Raises DataError where the file is no tar,
    damaged or cut off.
    """
    if not shard.is_file():
        raise DataError(f"{shard}: no such file")
    try:
        with tarfile.open(shard, "r:") as tar:
            for key, members in groupby(_members(tar), key=lambda member: _key(member.name)[0]):
                yield key, _contents(tar, members)
    except (tarfile.TarError, OSError, EOFError, ValueError, OverflowError, RecursionError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{shard}: not readable as tar ({str(error)[:200]})") from error


def _row_of(shard: Path, key: str, members: dict[str, bytes | str], asked: Request) -> dict | Rejected:
    source = f"{shard}:{key}"
    try:
        return {"id": f"{shard.stem}-{key}", "source": source, **_row(members, asked)}
    except (BadRow, DataError) as error:
        return Rejected(source, str(error))


def _row(members: dict[str, bytes | str], asked: Request) -> dict:
    for reason in members.values():
        if isinstance(reason, str):
            raise BadRow(reason)
    pictures = [name for name in members if f".{name.rpartition('.')[2]}" in EXTENSIONS]
    if len(pictures) != 1:
        raise BadRow(f"{len(pictures)} images among its members {', '.join(members)[:100]}; a row has one")
    image = {"path": None, "bytes": members[pictures[0]]}
    if "json" in members:
        record = parse_json(_text(members, "json"), "json")
        if conversations.matches(record):
            raise BadRow("its .json holds a conversation; needed: a caption, or a question and answer")
        if not isinstance(record, dict):
            raise BadRow(f"its .json is no object but {type(record).__name__}")
        texts = {**record, "image": "in the shard"}
        if "txt" in members:
            texts = {"caption": _text(members, "txt"), **texts}
        given = {**(asked.columns or {}), "image": "image"}
        prompt, references = Columns.choose(texts, given, "json").texts(texts)
    elif "txt" in members:
        prompt, references = None, [_text(members, "txt").strip()]
        if not references[0]:
            raise BadRow("caption is empty")
    else:
        raise BadRow(f"no .txt or .json among its members {', '.join(members)[:100]}")
    return {"image": image, "prompt": prompt, "references": references}


def _text(members: dict[str, bytes | str], name: str) -> str:
    try:
        return members[name].decode("utf-8-sig")
    except UnicodeDecodeError:
        raise BadRow(f".{name} is not UTF-8") from None


def _members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The files in a tar but hidden ones. Raises ReadError at damage, which tarfile by itself takes for the end."""
    last = -1
    for member in tar:
        if member.size < 0 or member.offset <= last:
            raise tarfile.ReadError("a header leads backwards")
        last = member.offset
        tar.members.clear()  # else the headers of all samples stay in memory
        if member.isfile() and not os.path.basename(member.name).startswith((".", "__")):
            yield member
    tar.fileobj.seek(tar.offset)
    if tar.fileobj.read(512).strip(b"\0"):
        raise tarfile.ReadError(f"damaged header at byte {tar.offset}")


def _key(name: str) -> tuple[str, str]:
    folder, base = os.path.split(name)
    stem, _, extension = base.partition(".")
    return os.path.join(folder, stem), extension.lower()


def _contents(tar: tarfile.TarFile, members: Iterator[tarfile.TarInfo]) -> dict[str, bytes | str]:
    found = {}
    for member in members:
        name = _key(member.name)[1]
        if member.issparse() or member.size > _LARGEST:  # a sparse member may claim any size
            found[name] = f"{member.name} is too large or sparse"
        elif name in found:
            found[name] = f"{member.name} is there twice"
        else:
            found[name] = tar.extractfile(member).read()
    return found
