"""Checkpoints: what is saved is loaded, whole ones are found, and no failure costs an older one."""

import errno
import hashlib
import os
import subprocess

import pytest
import torch

from vlm_train.engine.checkpoints import Checkpoints
from vlm_train.errors import TrainError

TREE = {
    "step": 3,
    "loss": float("nan"),
    "texts": ["a cat", "$tensor", "ü"],
    "nothing": None,
    "flag": True,
    "moments": {"0": {"m": torch.arange(6.0).view(2, 3), "n": torch.tensor(5, dtype=torch.int64)}},
    "pair": [torch.ones(2, dtype=torch.bfloat16), 0.1],
}


@pytest.fixture
def checkpoints(tmp_path):
    return Checkpoints(tmp_path / "checkpoints", keep=2)


def names(checkpoints):
    return sorted(path.name for path in checkpoints.folder.iterdir())


def test_a_tree_comes_back_bit_for_bit(checkpoints):
    checkpoints.save(3, TREE)
    step, tree = checkpoints.newest(pytest.fail)
    assert step == 3 and tree["step"] == 3 and tree["loss"] != tree["loss"] and tree["texts"] == TREE["texts"]
    assert tree["nothing"] is None and tree["flag"] is True and tree["pair"][1] == 0.1
    for given, found in (
        (TREE["moments"]["0"]["m"], tree["moments"]["0"]["m"]),
        (TREE["moments"]["0"]["n"], tree["moments"]["0"]["n"]),
        (TREE["pair"][0], tree["pair"][0]),
    ):
        assert given.dtype == found.dtype and torch.equal(given, found)


def test_sums_are_those_of_sha256sum(checkpoints):
    checkpoints.save(3, TREE)
    folder = checkpoints.folder / "step-00000003"
    for line in (folder / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split("  ")
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
    assert subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=folder, check=False).returncode == 0


def test_the_last_ones_and_the_best_stay(checkpoints):
    for step in range(1, 7):
        checkpoints.save(step, {"step": step}, spare=2)
    assert checkpoints.steps() == [2, 5, 6]
    assert checkpoints.load(2) == {"step": 2}
    checkpoints.save(7, {"step": 7}, spare=7)
    assert names(checkpoints) == ["step-00000006", "step-00000007"]


@pytest.mark.parametrize("name", ["state.json", "tensors.safetensors", "SHA256SUMS"])
@pytest.mark.parametrize("harm", ["a bit", "cut off", "gone"])
def test_a_damaged_one_is_told_and_the_one_before_it_used(name, harm, checkpoints):
    for step in (3, 6):
        checkpoints.save(step, {**TREE, "step": step})
    file = checkpoints.folder / "step-00000006" / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    if harm == "gone":
        file.unlink()
    else:
        file.write_bytes(content if harm == "a bit" else content[: len(content) // 2])
    said = []
    step, tree = checkpoints.newest(said.append)
    assert (step, tree["step"]) == (3, 3)
    assert len(said) == 1 and "step-00000006 is damaged" in said[0] and "it is passed over" in said[0]
    checkpoints.save(6, TREE)  # reached again
    assert checkpoints.newest(pytest.fail)[0] == 6


def test_none_at_all(checkpoints):
    assert checkpoints.newest(pytest.fail) is None and checkpoints.steps() == []


@pytest.mark.parametrize("call", ["fsync", "rename", "mkdir"])
def test_a_full_disk_leaves_the_last_one(call, checkpoints, monkeypatch):
    checkpoints.save(3, TREE)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as broken:
        broken.setattr(os, call, full)
        with pytest.raises(TrainError, match=r"step-00000006: no space left on the disk; .*free some space"):
            checkpoints.save(6, TREE)
    assert names(checkpoints) == ["step-00000003"]
    assert checkpoints.newest(pytest.fail)[0] == 3
    checkpoints.save(6, TREE)
    assert checkpoints.newest(pytest.fail)[0] == 6
