"""Entries on disk: bounded, whole or not there, whoever writes them and however they end."""

import hashlib
import multiprocessing
import os
import random
import signal
import time

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from vlm_models.tensor_store import PARTIAL, SUFFIX, TensorStore

KEYS = [hashlib.sha256(bytes([index])).hexdigest() for index in range(12)]
FORK = multiprocessing.get_context("fork")  # what they need is there at once


def keys(*numbers: int) -> list[str]:
    return [KEYS[number] for number in numbers]


def files(folder, suffix: str = SUFFIX) -> list:
    return sorted(folder.rglob(f"*{suffix}"))


def store(folder, entries: float, section: str = "a") -> TensorStore:
    """With room for so many entries of `tensors`."""
    return TensorStore(folder, section, int(entries * 1200))


def tensors(number: int) -> dict[str, Tensor]:
    return {"features": torch.full((16, 16), float(number)), "grid": torch.tensor([number, number])}


def test_the_least_recently_used_is_dropped(tmp_path):
    kept = store(tmp_path, 3.5)
    for number in range(3):
        kept.write(KEYS[number], tensors(number))
    assert kept.read(KEYS[0]) is not None
    kept.write(KEYS[3], tensors(3))
    assert [key in kept for key in keys(0, 1, 2, 3)] == [True, False, True, True]
    other = store(tmp_path, 3.5, "b")  # of another model: the bound is of both
    other.write(KEYS[0], tensors(0))
    assert [key in kept for key in keys(0, 2, 3)] == [True, False, True] and KEYS[0] in other


def test_a_store_stays_within_its_bound_and_leaves_other_files(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(bytes(10_000))
    kept = store(tmp_path, 20)
    for number in range(100):
        kept.write(hashlib.sha256(bytes([number])).hexdigest(), tensors(number))
        assert sum(file.stat().st_size for file in files(tmp_path)) <= kept.max_bytes
    assert len(files(tmp_path)) >= 16 and (tmp_path / "model.safetensors").exists()
    small = store(tmp_path, 0.5)  # smaller than an entry
    small.write("ab", tensors(0))
    assert "ab" not in small and len(files(tmp_path)) >= 16


def test_what_a_killed_writer_left_is_dropped_in_its_turn(tmp_path):
    kept = store(tmp_path, 3.5)
    kept.write(KEYS[0], tensors(0))
    left = tmp_path / "a" / KEYS[0][:2] / f"left{PARTIAL}"
    left.write_bytes(bytes(1100))
    old = time.time() - 2 * 3600
    os.utime(left, (old, old))
    for number in (1, 2):
        kept.write(KEYS[number], tensors(number))
    assert not left.exists() and all(key in kept for key in keys(0, 1, 2))


@pytest.mark.parametrize("damage", ["every byte", "every length", "another's"])
def test_damage_is_never_returned(damage, tmp_path):
    kept = store(tmp_path, 100)
    kept.write(KEYS[0], tensors(7))
    (file,) = files(tmp_path)
    whole = file.read_bytes()
    content = load_file(file)
    if damage == "every byte":
        header = int.from_bytes(whole[:8], "little") + 8
        places = [*range(header), *range(header, len(whole), 13)]
        broken = [whole[:i] + bytes([whole[i] ^ (1 << i % 8)]) + whole[i + 1 :] for i in places]
    elif damage == "every length":
        broken = [whole[:length] for length in range(0, len(whole), 7)] + [whole + b"\0"]
    else:
        kept.write(KEYS[1], tensors(8))
        broken = [next(path for path in files(tmp_path) if path != file).read_bytes()]
    for bad in broken:
        file.write_bytes(bad)
        found = store(tmp_path, 100).read(KEYS[0])
        # padding of the header says nothing; all that does is checked
        assert found is None or all(torch.equal(found[name], content[name]) for name in content)
        if damage != "every byte":
            assert found is None
    kept.write(KEYS[0], tensors(7))
    assert torch.equal(kept.read(KEYS[0])["features"], tensors(7)["features"])


def large(number: int) -> dict[str, Tensor]:
    """1 MB that nothing else could be."""
    return {"features": torch.randn(500, 500, generator=torch.Generator().manual_seed(number))}


def write_slowly(path, content: bytes) -> None:
    """As a disk would that is slow: most of the time something is half-written."""
    with path.open("wb", buffering=0) as file:
        for start in range(0, len(content), 2**16):
            file.write(content[start : start + 2**16])
            time.sleep(0.0005)


def write_for_ever(folder, seed: int) -> None:
    torch.set_num_threads(1)  # a forked process has no others
    type(folder).write_bytes = write_slowly
    order, kept, entries = random.Random(seed), store(folder, 1e6), [large(number) for number in range(4)]
    while True:
        number = order.randrange(4)
        kept.write(KEYS[number], entries[number])


@pytest.mark.slow
def test_entries_survive_kill_9(tmp_path):
    chance, read = random.Random(0), 0
    expected = {KEYS[number]: large(number)["features"] for number in range(4)}
    for seed in range(20):
        before = sum(file.stat().st_mtime_ns for file in files(tmp_path))
        child = FORK.Process(target=write_for_ever, args=(tmp_path, seed))
        child.start()
        while sum(file.stat().st_mtime_ns for file in files(tmp_path)) == before:
            assert child.is_alive()
            time.sleep(0.005)
        time.sleep(chance.uniform(0, 0.1))
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        for key, features in expected.items():
            entry = store(tmp_path, 1e6).read(key)
            assert (entry is None) == (key not in store(tmp_path, 1e6)), "renamed before it was whole"
            assert entry is None or torch.equal(entry["features"], features)
            read += entry is not None
    assert read > 20 and files(tmp_path, PARTIAL), "no child was killed while it wrote"
