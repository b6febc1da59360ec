"""The table of methods in peft-methods' README: every method on the default question answering job, tuned alike.

    uv run python tests/benchmarks/bench_methods.py [RESULTS.jsonl [METHOD ...]]
    uv run python tests/benchmarks/bench_methods.py costs RESULTS.jsonl

tiny-qwen2-vl on easy-VQA. Each method trains for the same steps on the same rows, at each learning rate of the grid
with one seed, and above the grid as long as the highest rate is the best. The rate that answers most of the held-out
training questions is run with three seeds. Reported at that rate: exact match on test questions (mean and range over
the seeds, and the widest bootstrap interval), parameters, size on disk, and forgetting: how much fewer of held-out
scenes' questions, which the checkpoint was trained on, are answered than before. One line is written for each run,
and runs already in the file are not repeated, so that it can be interrupted; the table is printed at the end.
`costs`, on an otherwise idle Linux machine, adds seconds a step and what training holds beside the loaded model at
most: every method in a process of its own, one after the other, three times.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import high_water
import torch
from rich.console import Console

import peft_methods
import vlm_data
import vlm_models
from vlm_train.adapting.methods import method_of
from vlm_train.engine.evaluate import evaluate
from vlm_train.engine.loop import Step, planned_steps, train
from vlm_train.engine.optimizers import make_optimizer
from vlm_train.options.checks import METHODS
from vlm_train.options.config import TrainConfig
from vlm_train.processes import Processes
from vlm_train.rows.batches import Batches
from vlm_train.rows.data import Data, read_data
from vlm_train.rows.features import encode_once

GRID, ABOVE = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2), (1e-1, 3e-1)
SEEDS = (0, 1, 2)
STEPS, TUNING_ROWS, TEST_ROWS, SCENE_ROWS = 300, 1000, 2500, 1000
COST_STEPS, COST_ROWS, ROUNDS = 40, 640, 3


class Job:
    """The data, read and encoded once for all runs: every method leaves the image encoder frozen."""

    def __init__(self):
        self.console = Console(quiet=True)
        data: Data = read_data(self.config("lora", GRID[0], 0), self.console)
        self.test = data.val
        train_rows, held_out = vlm_data.split(data.train, val_fraction=0.1, seed=0)
        self.train = train_rows
        self.tuning = held_out.shuffle(seed=0).select(range(TUNING_ROWS))
        scenes = vlm_data.open("scenes", split="test", seed=0)
        self.scenes = scenes.filter(lambda row: row["prompt"] is not None).select(range(SCENE_ROWS))
        vlm, collate = self.fresh()
        self.features = encode_once(vlm_models.FeatureCache(vlm), collate, self.train, self.console)
        self.before = {name: self.accuracy(vlm, collate, rows) for name, rows in self.evaluated().items()}

    def evaluated(self):
        return {"tuning": self.tuning, "test": self.test, "scenes": self.scenes}

    @staticmethod
    def config(method: str, learning_rate: float, seed: int) -> TrainConfig:
        return TrainConfig(method=method, learning_rate=learning_rate, seed=seed, max_steps=STEPS, val_rows=TEST_ROWS)

    @staticmethod
    def fresh():
        vlm = vlm_models.load("tiny-qwen2-vl").requires_grad_(False)  # features are kept where nothing upstream trains
        return vlm, vlm_data.collator(vlm.processor, vlm.family, vlm.max_length)

    def accuracy(self, vlm, collate, rows) -> dict:
        score = evaluate(vlm, collate, rows, self.console, "").scores["exact_match"]
        return {"value": score.value, "interval": score.interval}

    def run(self, method: str, learning_rate: float, seed: int, final: bool) -> dict:
        """Train once. The test questions and the scenes are answered in `final` runs only."""
        config = self.config(method, learning_rate, seed)
        vlm, collate = self.fresh()
        torch.manual_seed(seed)
        attachment = peft_methods.attach(vlm.model, method_of(config, vlm))
        steps(vlm, attachment, collate, self.train, self.features, config)
        result = {
            "method": method,
            "learning_rate": learning_rate,
            "seed": seed,
            "final": final,
            "trainable": attachment.trainable,
            "total": attachment.total,
            "file_bytes": size_on_disk(attachment),
        }
        wanted = ("test", "scenes") if final else ("tuning",)
        return result | {name: self.accuracy(vlm, collate, self.evaluated()[name]) for name in wanted}


def steps(vlm, attachment, collate, rows, features, config) -> list[Step]:
    """What each step of a training did."""
    optimizer = make_optimizer(attachment.parameter_groups(config.peak_learning_rate), config)
    attachment.bind(optimizer)
    batches = Batches(vlm, collate, rows, features, config, Processes())
    return list(train(vlm, attachment, optimizer, batches, planned_steps(len(rows), config), config, Processes()))


def size_on_disk(attachment: peft_methods.Attachment) -> int:
    with tempfile.TemporaryDirectory() as folder:
        attachment.save(folder)
        return sum(file.stat().st_size for file in Path(folder).iterdir())


def tried(results: list[dict], method: str) -> dict[float, float]:
    """Accuracy on the tuning questions by learning rate."""
    tuned = [result for result in results if result.get("method") == method and not result["final"]]
    return {result["learning_rate"]: result["tuning"]["value"] for result in tuned}


def best_rate(results: list[dict], method: str) -> float:
    rates = tried(results, method)
    return max(rates, key=rates.get)


def cost(method: str) -> dict:
    """Of training by this method, in this process."""
    config = replace(Job.config(method, GRID[0], 0), max_steps=COST_STEPS)
    vlm, collate = Job.fresh()
    rows = vlm_data.open("easy-vqa", split="train", seed=0).select(range(COST_ROWS))
    features = encode_once(vlm_models.FeatureCache(vlm), collate, rows, Console(quiet=True))
    before = high_water.reset()
    attachment = peft_methods.attach(vlm.model, method_of(config, vlm))
    seconds = [step.seconds for step in steps(vlm, attachment, collate, rows, features, config)]
    return {"cost": method, "step_seconds": statistics.median(seconds[5:]), "bytes": high_water.mark() - before}


def costs(file: Path) -> None:
    for _ in range(ROUNDS):
        for method in METHODS:
            command = [sys.executable, __file__, "cost", method]
            line = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[-1]
            with file.open("a") as out:
                out.write(line + "\n")
            print(line, flush=True)


def of_costs(results: list[dict], method: str) -> list[str]:
    found = [result for result in results if result.get("cost") == method]
    if not found:
        return ["", ""]
    seconds, size = (min(result[key] for result in found) for key in ("step_seconds", "bytes"))  # the least disturbed
    return [f"{1000 * seconds:.0f} ms", f"{size / 1e6:.0f} MB"]


def table(results: list[dict], before: dict) -> None:
    columns = [
        "method",
        "rate",
        "accuracy",
        "range",
        "95 % interval",
        "trained",
        "forgetting",
        "on disk",
        "step",
        "memory",
    ]
    print(f"| {' | '.join(columns)} |\n| {' | '.join(['---'] * len(columns))} |")
    base = before["test"]
    print(f"| none | | {base['value']:.3f} | | {base['interval'][0]:.3f} to {base['interval'][1]:.3f} | | | | | |")
    for method in METHODS:
        finals = [result for result in results if result.get("method") == method and result["final"]]
        runs = [result for result in finals if result["learning_rate"] == best_rate(results, method)]
        if not runs:
            continue
        values = [run["test"]["value"] for run in runs]
        low = min(run["test"]["interval"][0] for run in runs)
        high = max(run["test"]["interval"][1] for run in runs)
        lost = before["scenes"]["value"] - statistics.mean(run["scenes"]["value"] for run in runs)
        cells = [
            method,
            f"{runs[0]['learning_rate']:g}",
            f"{statistics.mean(values):.3f}",
            f"{min(values):.3f} to {max(values):.3f}",
            f"{low:.3f} to {high:.3f}",
            f"{runs[0]['trainable'] / runs[0]['total']:.2%}",
            f"{lost:+.3f}",
            f"{runs[0]['file_bytes'] / 1e3:.0f} kB",
            *of_costs(results, method),
        ]
        print(f"| {' | '.join(cells)} |", flush=True)


def main() -> None:
    if sys.argv[1:2] == ["cost"]:
        print(json.dumps(cost(sys.argv[2])))
        return
    if sys.argv[1:2] == ["costs"]:
        costs(Path(sys.argv[2]))
        return
    file = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/bench_methods.jsonl")
    file.parent.mkdir(parents=True, exist_ok=True)
    results = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    done = {(r["method"], r["learning_rate"], r["seed"], r["final"]) for r in results if "method" in r}
    job = Job()

    def once(*run) -> None:
        if run in done:
            return
        results.append(job.run(*run))
        with file.open("a") as out:
            out.write(json.dumps(results[-1]) + "\n")
        print(json.dumps(results[-1]), file=sys.stderr, flush=True)

    for method in sys.argv[2:] or METHODS:
        for learning_rate in GRID:
            once(method, learning_rate, SEEDS[0], False)
        for learning_rate in ABOVE:
            if best_rate(results, method) == max(tried(results, method)):
                once(method, learning_rate, SEEDS[0], False)
        for seed in SEEDS:
            once(method, best_rate(results, method), seed, True)
    table(results, job.before)


if __name__ == "__main__":
    main()
