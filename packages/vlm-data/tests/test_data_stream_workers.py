"""The worker processes of a stream: signals are for the main process, and they end with the process that began them."""

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
from PIL import Image

import vlm_data

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")


@pytest.fixture(scope="module")
def stream(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stream")
    Image.new("RGB", (4, 4)).save(folder / "0.png")
    lines = [json.dumps({"image": "0.png", "caption": f"text {number}"}) for number in range(64)]
    (folder / "part.jsonl").write_text("\n".join(lines))
    return vlm_data.stream(folder / "part.jsonl")


def test_signals_leave_workers_their_time(stream):
    expected = [[row["id"] for row in rows] for rows in stream.loader(4)]
    found = []
    for rows in stream.loader(4, workers=2):
        found.append([row["id"] for row in rows])
        for worker in multiprocessing.active_children() if len(found) > 1 else ():  # then both have begun
            os.kill(worker.pid, signal.SIGINT)
            os.kill(worker.pid, signal.SIGTERM)
    assert found == expected


def test_workers_end_with_a_process_that_is_killed(stream):
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        batches = iter(stream.loader(4, workers=2))
        next(batches)
        os.write(writing, " ".join(str(worker.pid) for worker in multiprocessing.active_children()).encode())
        time.sleep(60)
        os._exit(0)
    workers = [int(pid) for pid in os.read(reading, 100).split()]
    assert len(workers) == 2 and all(map(_runs, workers))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    deadline = time.monotonic() + 60
    while left := [pid for pid in workers if _runs(pid)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.2)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")  # what nobody has waited for is there still, as a zombie
    return not (stat.exists() and stat.read_text().rsplit(")", 1)[1].split()[0] == "Z")
