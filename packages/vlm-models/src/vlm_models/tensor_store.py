"""Tensors in a folder, by key: shared by processes, bounded in size, the least recently used dropped first.

An entry is a safetensors file. It is written beside its place and renamed, so that a reader finds all of it or nothing,
however its writer ended; it is read through a memory map, so that nothing is copied. There are no locks and no index:
the folder is the index, which also holds where a network shares it.
"""

import os
import secrets
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, uint8

SUFFIX, PARTIAL = ".features", ".features-partial"  # names that nothing else has: only these are ever removed
HOUR = 3_600 * 10**9  # ns


class TensorStore:
    """Entries {name: tensor} under `folder/section/`.

    max_bytes: of all sections together. Several processes at once may pass it by a sixteenth each.
    """

    def __init__(self, folder: Path, section: str, max_bytes: int):
        self.folder, self.section, self.max_bytes = folder, section, max_bytes
        self._verified: dict[str, tuple[int, ...]] = {}  # which file was found whole under a key
        self._room = 0  # bytes to write before the folder is measured again

    def __contains__(self, key: str) -> bool:
        """Whether there is an entry; `read` tells whether it is whole."""
        return self._path(key).exists()

    def read(self, key: str) -> dict[str, Tensor] | None:
        """The tensors, mapped from the file; None if there are none, or if they are damaged.

        The checksum is computed when this process first sees a file, and again if the file is another by then.
        """
        path = self._path(key)
        try:
            status = path.stat()
            with safe_open(path, "pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a dictionary
                checksum = (file.metadata() or {}).get("checksum")
        except Exception:  # of many kinds, where a header is damaged
            return None
        version = (status.st_ino, status.st_size, status.st_mtime_ns)
        if self._verified.get(key) != version:
            if checksum != _checksum(key, tensors):
                return None
            self._verified[key] = version
        with suppress(OSError):  # a folder of others, to be read only
            os.utime(path, ns=(time.time_ns(), status.st_mtime_ns))  # not left to the system: disks are mounted noatime
        return tensors

    def write(self, key: str, tensors: Mapping[str, Tensor]) -> None:
        """Keep an entry, or replace it; one that is larger than all the room there can be is not kept.

        Raises OSError: the disk is full, or the folder cannot be written.
        """
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        content = save(tensors, {"checksum": _checksum(key, tensors)})
        if not self._make_room(len(content)):
            return
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(secrets.token_hex(8) + PARTIAL)
        try:
            partial.write_bytes(content)
            os.utime(partial)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        return self.folder / self.section / key[:2] / (key + SUFFIX)

    def _make_room(self, size: int) -> bool:
        """Whether there is room for `size` bytes, once what was not used for longest is dropped."""
        if size > self.max_bytes:
            return False
        if size > self._room:
            step = max(size, self.max_bytes // 16)  # measured, and made free, at a time: a full folder is no slower
            files = list(self._files())
            total = sum(bytes_ for _, bytes_, _ in files)
            if total + size > self.max_bytes:
                for _, bytes_, path in sorted(files):
                    if total + step <= self.max_bytes:
                        break
                    with suppress(OSError):
                        os.unlink(path)
                        total -= bytes_
            self._room = min(self.max_bytes - total, step)
        if size > self._room:  # others' files, which cannot be removed
            return False
        self._room -= size
        return True

    def _files(self) -> Iterator[tuple[int, int, str]]:
        """When each file was last used [ns], its bytes and its path."""
        for folder, _, names in os.walk(self.folder):
            for name in names:
                if name.endswith((SUFFIX, PARTIAL)):
                    path = os.path.join(folder, name)
                    with suppress(OSError):  # another process has dropped or renamed it
                        status = os.stat(path)
                        spared = HOUR if name.endswith(PARTIAL) else 0  # being written, or left by a killed process
                        yield status.st_atime_ns + spared, status.st_size, path


def _checksum(key: str, tensors: Mapping[str, Tensor]) -> str:
    """CRC-32 of all that an entry says: a file under another's name is damaged too."""
    value = zlib.crc32(key.encode())
    for name, tensor in sorted(tensors.items()):
        value = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), value)
        value = zlib.crc32(tensor.reshape(-1).view(uint8).numpy(), value)
    return f"{value:08x}"
