"""Workers of a Ray cluster on this machine, some of which die. They hold no model: each would take long to load it."""

import json
import os
import signal

import pytest

from vlm_infer import InferError, engines
from vlm_infer.batches import RowBatch
from vlm_infer.generation import Generation, Outcome
from vlm_infer.model import ModelSpec

ray = pytest.importorskip("ray")
BATCHES = 12


def worker_class() -> type:
    """Made in a function, so that Ray sends it as it is: workers need not import this file and what it imports."""

    class Named:
        """Answers a row with its id. A row named so raises an error, kills its worker once, or always."""

        def __init__(self, spec, generation, batch_size, attention):
            self.size, self.marker = batch_size, os.environ["MARKER"]

        def batch_size(self):
            return self.size or 2

        def answer(self, positions, rows):
            with open(self.marker, "a") as file:
                file.write(f"{os.getpid()} {positions[0]}\n")
            names = {row["id"] for row in rows}
            if "error" in names:
                raise InferError("out of memory on cuda with 1 rows")
            if "always" in names or ("once" in names and not os.path.exists(f"{self.marker}.died")):
                open(f"{self.marker}.died", "w").close()
                os.kill(os.getpid(), signal.SIGKILL)
            return [Outcome(row["id"], -1.0, 0.1) for row in rows]

    return Named


@pytest.fixture(scope="module")
def marker(tmp_path_factory):
    """A local cluster, and the file in which its workers write their process and the batch they are at."""
    path = tmp_path_factory.mktemp("ray") / "marker"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        environment = {"env_vars": {"MARKER": str(path)}}
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env=environment)
        patch.setattr(engines, "_Worker", worker_class())
        yield path
        ray.shutdown()


def answers(*special: str) -> dict[int, str]:
    """The texts by position of 12 batches of two rows, the last rows with special names; every row must come once."""
    names = [f"row {number}" for number in range(2 * BATCHES - len(special))] + list(special)
    batches = [RowBatch([at, at + 1], [{"id": names[at]}, {"id": names[at + 1]}]) for at in range(0, 2 * BATCHES, 2)]
    engine = engines.RayWorkers(ModelSpec("none", device="cpu"), Generation(), 2, None, workers=2)
    found = {}
    for batch, outcomes in engine.map(batches):
        for position, outcome in zip(batch.positions, outcomes, strict=True):
            assert position not in found
            found[position] = outcome.text
    for worker in engine.workers:
        ray.kill(worker)
    assert found == dict(enumerate(names))
    return found


@pytest.mark.parametrize("gpus", [1, 2, 3, 8])
@pytest.mark.parametrize("workers", [1, 2, 3, 4, 6, 16])
def test_all_workers_find_room_on_the_gpus(gpus, workers):
    """Ray puts a worker on one GPU that has its share left; one that finds none would be waited for without end."""
    left = [10_000] * gpus
    for _ in range(workers):
        own = max(range(gpus), key=left.__getitem__)
        left[own] -= round(10_000 * engines.gpu_share(gpus, workers))
    assert min(left) >= 0
    assert engines.gpu_share(0, workers) == 0


def test_a_lost_workers_rows_are_answered_by_another(marker):
    answers("once")
    lines = [line.split() for line in marker.read_text().splitlines()]
    assert len({process for process, _ in lines}) == 3  # two, and one in the place of the lost one
    last = [process for process, batch in lines if batch == str(2 * BATCHES - 2)]
    assert len(set(last)) == 2


def test_an_error_of_a_worker_is_that_of_the_job(marker):
    with pytest.raises(InferError, match="^out of memory on cuda with 1 rows$"):
        answers("error")


def test_rows_that_kill_every_worker_end_the_job(marker, monkeypatch):
    monkeypatch.setattr(engines, "RETRIES", 0)
    with pytest.raises(InferError, match="Ray lost a worker 1 times at one batch"):
        answers("always")


def test_the_command(marker, command, tmp_path):
    table = ["--data", "pictures/questions.csv", "--image-dir", "pictures/photos", "--out", "a.jsonl"]
    result = command("--model", "tiny-git", "--device", "cpu", *table, "--engine", "ray", "--workers", "1")
    assert result.exit_code == 0 and "12 texts in a.jsonl" in result.stdout, result.output
    rows = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [row["text"] for row in rows] == [row["id"] for row in rows]
