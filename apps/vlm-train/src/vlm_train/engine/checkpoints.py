"""Checkpoints: a tree of JSON values and tensors in a folder of its own, whole or not there at all, and no pickle.

    checkpoints/step-00000120/   state.json   tensors.safetensors   SHA256SUMS (as `sha256sum -c` takes it)

A checkpoint is written to a hidden folder beside, synced to disk and renamed. So a kill at any moment leaves the ones
before it as they were; what a disk does to files later is told by the checksums.
"""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load, save
from torch import Tensor

from vlm_train.errors import TrainError

STATE, TENSORS, SUMS = "state.json", "tensors.safetensors", "SHA256SUMS"
FULL = (errno.ENOSPC, errno.EDQUOT)
TENSOR = "$tensor"  # in state.json, {TENSOR: name} stands for a tensor
Tree = Any  # dict with string keys, list, str, int, float, bool, None or Tensor


class Checkpoints:
    """The checkpoints of a run in `folder`, of which the last `keep` stay, and those that `save` is told to spare."""

    def __init__(self, folder: Path, keep: int):
        self.folder, self.keep = folder, keep

    def save(self, step: int, tree: Tree, spare: int | None = None) -> None:
        """Write the checkpoint of a step; the one of step `spare` stays beside the last ones.

        Raises TrainError: it cannot be written, as on a full disk. The others are as they were.
        """
        writing = self.folder / f".writing-{step:08d}"
        try:
            shutil.rmtree(writing, ignore_errors=True)
            writing.mkdir(parents=True)
            _write(writing, tree)
            place = self._place(step)
            if place.exists():
                self._remove(step)
            os.rename(writing, place)
            _sync(self.folder)
        except OSError as error:
            shutil.rmtree(writing, ignore_errors=True)
            raise TrainError(f"{self._place(step)}: {why_not_written(error)}") from error
        for old in self.steps()[: -self.keep]:
            if old != spare:
                self._remove(old)

    def steps(self) -> list[int]:
        """Steps of which there is a checkpoint, damaged or not; ascending."""
        return sorted(int(path.name.removeprefix("step-")) for path in self.folder.glob("step-*"))

    def newest(self, say: Callable[[str], object]) -> tuple[int, Tree] | None:
        """The newest whole checkpoint and its step; None without any. A damaged one is told and passed over."""
        for step in reversed(self.steps()):
            try:
                return step, self.load(step)
            except TrainError as error:
                say(f"{error}; it is passed over")
        return None

    def load(self, step: int) -> Tree:
        """The tree that `save` was given, tensors on the CPU. Raises TrainError if it is damaged."""
        folder = self._place(step)
        try:
            sums = dict(reversed(line.split("  ", 1)) for line in (folder / SUMS).read_text().splitlines())
            contents = {name: (folder / name).read_bytes() for name in (STATE, TENSORS)}
        except (OSError, ValueError) as error:
            raise TrainError(f"{folder} is damaged: {error}") from error
        for name, content in contents.items():
            if sums.get(name) != hashlib.sha256(content).hexdigest():
                raise TrainError(f"{folder} is damaged: {name} does not have its checksum")
        tensors = load(contents[TENSORS])
        return _put(json.loads(contents[STATE]), tensors)

    def remove(self) -> None:
        """All of them, when there is nothing left to resume."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _place(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def _remove(self, step: int) -> None:
        removing = self.folder / f".removing-{step:08d}"  # a half-removed one would look damaged
        shutil.rmtree(removing, ignore_errors=True)
        os.rename(self._place(step), removing)
        shutil.rmtree(removing, ignore_errors=True)


def why_not_written(error: OSError) -> str:
    """What was wrong, and the fix."""
    if error.errno in FULL:
        return "no space left on the disk; what was written before is whole: free some space, then resume"
    return f"cannot be written: {error.strerror or error}"


def _write(folder: Path, tree: Tree) -> None:
    tensors: dict[str, Tensor] = {}
    contents = {STATE: json.dumps(_take(tree, "", tensors)).encode(), TENSORS: b""}
    contents[TENSORS] = save(tensors)
    sums = "".join(f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in contents.items())
    for name, content in {**contents, SUMS: sums.encode()}.items():
        with (folder / name).open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    _sync(folder)


def _take(tree: Tree, name: str, tensors: dict[str, Tensor]) -> Tree:
    """The tree with names in place of its tensors, which are put into `tensors`."""
    if isinstance(tree, Tensor):
        tensors[name] = tree.detach().to("cpu", copy=True).contiguous()
        return {TENSOR: name}
    if isinstance(tree, dict):
        return {key: _take(value, f"{name}/{key}", tensors) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_take(value, f"{name}/{index}", tensors) for index, value in enumerate(tree)]
    return tree


def _put(tree: Tree, tensors: dict[str, Tensor]) -> Tree:
    if isinstance(tree, dict):
        return tensors[tree[TENSOR]] if TENSOR in tree else {key: _put(value, tensors) for key, value in tree.items()}
    return [_put(value, tensors) for value in tree] if isinstance(tree, list) else tree


def _sync(folder: Path) -> None:
    if os.name != "posix":  # elsewhere a folder cannot be opened
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
