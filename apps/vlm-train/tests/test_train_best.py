"""Evaluations on the way: which state is kept, and when it is time to stop."""

import json
import math

import pytest
import torch
from datasets import Dataset

import peft_methods as pm
import vlm_models
from vlm_train.engine import training
from vlm_train.engine.evaluate import evaluation_of
from vlm_train.options.config import TrainConfig
from vlm_train.run import run

ROWS = Dataset.from_dict({"prompt": ["q", "q"], "references": [["a"], ["b"]]})


@pytest.mark.parametrize(
    ("metric", "own", "other", "better"),
    [
        ("exact_match", (["a", "b"], 2.0), (["a", "c"], 1.0), True),
        ("exact_match", (["c", "c"], 1.0), (["a", "c"], 2.0), False),
        ("exact_match", (["a", "c"], 1.0), (["c", "b"], 2.0), True),  # as many are right: the loss is lower
        ("exact_match", (["c", "c"], 2.0), (["d", "d"], 2.0), False),
        ("loss", (["c", "c"], 1.0), (["a", "b"], 2.0), True),
        ("loss", (["a", "b"], 2.0), (["c", "c"], 1.0), False),
        ("loss", (["a", "b"], 2.0), (["a", "b"], math.nan), True),
        ("loss", (["a", "b"], math.nan), (["a", "b"], 2.0), False),
    ],
)
def test_the_better_of_two(metric, own, other, better):
    assert evaluation_of(*own, ROWS).better_than(evaluation_of(*other, ROWS), metric) is better
    assert evaluation_of(*own, ROWS).better_than(None, metric)


@pytest.mark.parametrize(
    ("losses", "options", "steps", "best"),
    [
        ([5.0, 4.0, 3.0, 3.5, 3.6, 3.7], {"metric": "loss", "patience": 2}, 4, 2),
        ([5.0, 4.0, 3.0, 3.5, 3.6, 3.7], {"metric": "loss"}, 5, 2),
        ([5.0, 4.0, 3.0, 2.9, 2.8, 2.7], {"patience": 1}, 5, 5),  # no caption is right: the loss decides
    ],
)
def test_the_best_state_is_what_is_left(losses, options, steps, best, captions, tmp_path, monkeypatch):
    states = []

    def evaluate(vlm, collate, rows, *others):
        (attachment,) = pm.attachments(vlm.model)
        states.append({name: tensor.clone() for name, tensor in attachment.state_dict().items()})
        return evaluation_of([f"words {len(states)}"] * len(rows), losses[len(states) - 1], rows)

    monkeypatch.setattr(training, "evaluate", evaluate)
    data = {
        "data": str(captions / "captions.csv"),
        "model": "tiny-git",
        "val_rows": 4,
        "batch_size": 4,
        "device": "cpu",
    }
    folder = run(TrainConfig(**data, **options, max_steps=5, evaluate_every=1, out=str(tmp_path / "run")))
    results = json.loads((folder / "run.json").read_text())["results"]
    assert (results["steps"], results["best_step"]) == (steps, best)
    kept = pm.load(vlm_models.load("tiny-git", device="cpu").model, folder / "adapter").state_dict()
    assert kept.keys() == states[best].keys() and all(torch.equal(kept[name], states[best][name]) for name in kept)
    lines = (folder / "predictions.jsonl").read_text().splitlines()
    assert {json.loads(line)["prediction"] for line in lines} == {f"words {best + 1}"}
