"""Streams: every row once, in an order that a state can go on with exactly; bad samples are set aside by name."""

import io
import json
import pickle
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import vlm_data
from vlm_data import DataError
from vlm_data.streams import stream

ROWS = 230  # over all shards


def png(number: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (2, 2), (number % 256, number // 256, 0)).save(file, "PNG")
    return file.getvalue()


def member(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    tar.addfile(entry, io.BytesIO(data))


def write_tar(path: Path, numbers: range) -> None:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        folder = tarfile.TarInfo("train")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for number in numbers:
            member(tar, f"train/{number}.PNG", png(number))
            if number % 2:
                member(tar, f"train/{number}.txt", f" row {number}\n".encode())
            else:
                member(
                    tar, f"train/{number}.json", json.dumps({"question": "which?", "answer": f"row {number}"}).encode()
                )


def write_parquet(path: Path, numbers: range) -> None:
    images = [{"bytes": png(number), "path": f"{number}.png"} for number in numbers]
    table = pa.table({"image": images, "caption": [f"row {number}" for number in numbers]})
    pq.write_table(table, path, row_group_size=7)


def write_json_lines(path: Path, numbers: range) -> None:
    for number in numbers:
        (path.parent / f"{number}.png").write_bytes(png(number))
    records = [{"image": f"{number}.png", "question": "which?", "answers": [f"row {number}"]} for number in numbers]
    path.write_text("".join(json.dumps(record) + "\n\n" for record in records))


WRITE = {"tar": write_tar, "parquet": write_parquet, "jsonl": write_json_lines}


@pytest.fixture(scope="module", params=["tar", "parquet", "jsonl"])
def shards(request, tmp_path_factory) -> Path:
    """Five shards of different lengths, with the rows 0 to ROWS - 1."""
    folder = tmp_path_factory.mktemp("shards")
    cuts = [0, 11, 100, 101, 180, ROWS]
    for index in range(5):
        WRITE[request.param](folder / f"{index}.{request.param}", range(cuts[index], cuts[index + 1]))
    return folder


def numbers(batches) -> list[int]:
    """The rows of batches by their numbers, each checked for its image."""
    found = []
    for batch in batches:
        for row in batch:
            number = int(row["references"][0].removeprefix("row "))
            red, green, _ = vlm_data.decode(row["image"]).getpixel((0, 0))
            assert (red, green) == (number % 256, number // 256)
            found.append(number)
    return found


def epochs(loader, count: int) -> list[list[int]]:
    return [numbers(loader) for _ in range(count)]


def test_without_shuffling_the_order_is_that_of_the_files(shards):
    rows = stream(shards, shuffle=False, window=16)
    assert numbers(rows.loader(4)) == list(range(ROWS)) and len(rows) == ROWS


def test_each_epoch_has_every_row_once_in_an_order_of_its_own(shards):
    first, second = epochs(stream(shards, window=32).loader(4), 2)
    assert sorted(first) == sorted(second) == list(range(ROWS))
    assert first != second
    assert [first, second] == epochs(stream(shards, window=32).loader(4), 2)
    assert numbers(stream(shards, window=32, seed=1).loader(4)) not in (first, second)
    # Neighbours were far apart in the files: within a window of 32, two random places are 11 apart on average.
    assert np.abs(np.diff(first)).mean() > 9


@pytest.mark.parametrize("workers", [2, 4])
def test_workers_do_not_change_the_order(shards, workers):
    rows = stream(shards, window=32)
    alone = epochs(rows.loader(3), 2)
    assert epochs(rows.loader(3, workers=workers), 2) == alone


def test_a_state_goes_on_where_it_was_taken_after_any_number_of_rows(shards):
    rows = stream(shards, window=32)
    whole = epochs(rows.loader(1), 2)
    for stop in [*range(0, ROWS, 13), 31, 32, 33, ROWS - 1, ROWS]:
        loader = rows.loader(1)
        batches = iter(loader)
        head = numbers(next(batches) for _ in range(stop))
        state = json.loads(json.dumps(loader.state()))
        resumed = stream(shards, window=32).loader(1)
        resumed.restore(state)
        assert len(resumed) == ROWS - stop
        assert [head + numbers(resumed), numbers(resumed)] == whole


@pytest.mark.slow
@pytest.mark.parametrize("workers", [(2, 2, 2), (4, 4, 4), (0, 4, 2)])
def test_resuming_twice_and_into_the_next_epoch_with_workers(shards, workers):
    whole = epochs(stream(shards, window=32).loader(4), 3)
    found, state = [], None
    for count, steps in zip(workers, (13, 20, 200), strict=True):  # 58 batches are an epoch
        loader = stream(shards, window=32).loader(4, workers=count)
        if state is not None:
            loader.restore(state)
        found += numbers(batch for _, batch in zip(range(steps), forever(loader), strict=False))
        state = loader.state()
    assert found == sum(epochs(stream(shards, window=32).loader(4), 5), [])[: len(found)]
    assert found[: 2 * ROWS] == whole[0] + whole[1]


def forever(loader):
    while True:
        yield from loader


IN_NEW_PROCESS = """
import json, sys
from vlm_data.streams import stream
folder, workers, steps, state = json.loads(sys.argv[1])
loader = stream(folder, window=32).loader(4, workers=workers)
loader.restore(state)
texts = [row["references"][0] for _, batch in zip(range(steps), loader) for row in batch]
print(json.dumps([texts, loader.state()]))
"""


@pytest.mark.slow
def test_a_new_process_goes_on_and_another_after_it(tmp_path):
    for part in range(3):
        write_tar(tmp_path / f"{part}.tar", range(80 * part, 80 * part + 80))
    loader = stream(tmp_path, window=32).loader(4)
    batches = iter(loader)
    found = numbers(next(batches) for _ in range(10))
    state = loader.state()
    for workers, steps in ((2, 20), (0, 100)):
        argument = json.dumps([str(tmp_path), workers, steps, state])
        result = subprocess.run(
            [sys.executable, "-c", IN_NEW_PROCESS, argument], capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, result.stderr
        texts, state = json.loads(result.stdout)
        found += [int(text.removeprefix("row ")) for text in texts]
    assert found == numbers(stream(tmp_path, window=32).loader(4))
    assert state["epoch"] == 1 and state["row"] == 0


def test_processes_share_the_rows_and_stay_in_step(shards):
    rows = stream(shards, window=32)
    alone = numbers(rows.loader(1))
    parts = [epochs(rows.loader(5, rank=rank, world_size=3, workers=rank), 1)[0] for rank in range(3)]
    together = [number for turn in zip(*parts, strict=True) for number in turn]
    assert together == alone[: ROWS - ROWS % 3]


def test_another_number_of_processes_can_go_on(shards):
    rows = stream(shards, window=32)
    alone = numbers(rows.loader(1))
    loaders = [rows.loader(4, rank=rank, world_size=3) for rank in range(3)]
    batches = [iter(loader) for loader in loaders]
    before = [[number for _ in range(5) for number in numbers([next(part)])] for part in batches]
    assert [loader.state() for loader in loaders] == [{**loaders[0].state(), "row": 60}] * 3
    after = []
    for rank in range(2):
        loader = rows.loader(7, rank=rank, world_size=2)
        loader.restore(loaders[0].state())
        after.append(numbers(loader))
    turns = [*zip(*before, strict=True), *zip(*after, strict=True)]
    assert [number for turn in turns for number in turn] == alone


@pytest.mark.parametrize("change", [{"seed": 1}, {"window": 33}, {"shuffle": False}])
def test_a_state_of_another_stream_is_refused(shards, change):
    state = stream(shards, window=32).loader(1).state()
    with pytest.raises(DataError, match="state is of a stream with other shards"):
        stream(shards, **{"window": 32, **change}).loader(1).restore(state)
    with pytest.raises(DataError, match="state is of a stream with other shards"):
        stream(sorted(shards.glob("[0-3].[tpj][as]*")), window=32).loader(1).restore(state)


def test_a_stream_can_be_sent_to_a_process_that_is_spawned(shards):
    rows = stream(shards, window=32)
    assert numbers(pickle.loads(pickle.dumps(rows)).loader(4)) == numbers(rows.loader(4))
