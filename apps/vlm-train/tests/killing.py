"""Trainings in forked processes that are killed (`kill -9`) at random moments and resumed.

    python killing.py DATA FOLDER TRIALS        DATA: a folder with captions.csv and its images; FOLDER: for the runs

One process imports everything and forks, since imports take longer than the trainings. What differs from the run that
nobody killed is printed; the exit status says whether anything does.
"""

import itertools
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from vlm_train import run as training
from vlm_train.options.config import TrainConfig

METHODS = {"lora": {"method": "lora", "dropout": 0.2}, "grit": {"method": "grit", "dropout": 0.1, "rank": 8}}
WALL_CLOCK = ("rows_per_second", "samples_per_second", "tokens_per_second", "seconds", "memory")
KILLS = 2  # in one trial, at most


def config(data: Path, out: Path, method: str) -> TrainConfig:
    options = {"model": "tiny-git", "data": str(data / "captions.csv"), "epochs": 4, "batch_size": 4}
    often = {"checkpoint_every": 3, "evaluate_every": 8, "metric": "loss", "val_rows": 6}
    return TrainConfig(
        **options, **often, **METHODS[method], cache_dir=str(out.parent / "cache"), out=str(out), device="cpu"
    )


def forked(work: Callable[[], object], kill_after: float | None = None) -> int:
    """Do something in a child, which is killed after so many seconds; returns its wait status."""
    child = os.fork()
    if child == 0:
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        work()
        os._exit(0)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]


def killed_in_writing(countdown: int, after: bool) -> None:
    """From here on, the process kills itself at the n-th sync or renaming of a file, before or after it."""
    calls = itertools.count(1)

    def wrapped(plain: Callable) -> Callable:
        def call(*args, **options):
            this = next(calls)
            if this == countdown and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            result = plain(*args, **options)
            if this == countdown and after:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return call

    for name in ("fsync", "rename", "replace", "truncate"):
        setattr(os, name, wrapped(getattr(os, name)))


def result(out: Path) -> dict[str, object]:
    """What must not depend on kills."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    record = json.loads((out / "run.json").read_text())
    return {
        "adapter": (out / "adapter" / "adapter_model.safetensors").read_bytes(),
        "predictions": (out / "predictions.jsonl").read_text(),
        "metrics": [{k: v for k, v in line.items() if not any(word in k for word in WALL_CLOCK)} for line in lines],
        "results": {k: v for k, v in record["results"].items() if not any(word in k for word in WALL_CLOCK)},
        "files": sorted(path.name for path in out.iterdir()),
    }


def trial(data: Path, out: Path, method: str, duration: float, random: random.Random) -> list[str]:
    """One run, killed up to `KILLS` times; returns what is told of the kills."""
    kills = []

    def go_on() -> None:
        resume = (out / "run.json").exists()
        training.run(config(data, out, method), resume=resume)

    for _ in range(KILLS):
        if random.random() < 0.5:
            seconds = random.uniform(0.1, 0.9) * duration
            status = forked(go_on, seconds)
            moment = f"{seconds:.2f} s"
        else:
            countdown, after = random.randrange(1, 90), random.random() < 0.5

            def self_killing(countdown: int = countdown, after: bool = after) -> None:
                killed_in_writing(countdown, after)
                go_on()

            status = forked(self_killing)
            moment = f"{'after' if after else 'before'} write {countdown}"
        kills.append(moment)
        if status == 0:
            return kills
        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, (moment, status)
    assert forked(go_on) == 0
    return kills


def main(data: Path, folder: Path, trials: int) -> bool:
    expected, durations, equal = {}, {}, True
    for method in METHODS:
        started = time.monotonic()
        assert forked(lambda method=method: training.run(config(data, folder / method, method))) == 0
        durations[method] = time.monotonic() - started
        expected[method] = result(folder / method)
    for number in range(trials):
        method = list(METHODS)[number % len(METHODS)]
        kills = trial(data, folder / f"trial-{number}", method, durations[method], random.Random(number))
        found = result(folder / f"trial-{number}")
        differing = [name for name in found if found[name] != expected[method][name]]
        equal = equal and not differing
        print(f"trial {number}, {method}, killed at {', '.join(kills)}: {differing or 'equal'}", flush=True)
    return equal


if __name__ == "__main__":
    sys.exit(0 if main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])) else 1)
