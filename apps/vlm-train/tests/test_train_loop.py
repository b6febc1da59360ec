"""The schedule, the number of steps and the order of rows."""

import math

import pytest
from datasets import Dataset

from vlm_train.config import TrainConfig
from vlm_train.loop import _micro_batches, planned_steps, schedule


def test_schedule_rises_linearly_and_falls_along_a_cosine():
    shares = [schedule(step, 100, 0.1) for step in range(100)]
    assert shares[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert shares[10:] == pytest.approx([(1 + math.cos(math.pi * step / 90)) / 2 for step in range(90)])
    assert schedule(0, 10, 0.0) == 1.0 and schedule(0, 1, 0.0) == 1.0 and schedule(0, 1, 1.0) == 1.0


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"batch_size": 10}, 10),
        ({"batch_size": 10, "accumulate": 2}, 5),
        ({"batch_size": 10, "epochs": 2.5}, 25),
        ({"batch_size": 10, "max_steps": 3}, 3),
        ({"batch_size": 1000}, 1),
    ],
)
def test_planned_steps(options, steps):
    assert planned_steps(100, TrainConfig(**options)) == steps


def test_every_epoch_holds_every_row_once_in_an_order_of_its_own():
    rows = Dataset.from_dict({"id": [str(index) for index in range(12)]})
    batches = _micro_batches(rows, TrainConfig(batch_size=4, seed=3))
    first, second = ([row["id"] for _ in range(3) for row in next(batches)] for _ in range(2))
    assert sorted(first) == sorted(second) == sorted(rows["id"])
    assert first != second
    again = _micro_batches(rows, TrainConfig(batch_size=4, seed=3))
    assert [row["id"] for _ in range(3) for row in next(again)] == first


def test_a_batch_larger_than_the_data_takes_rows_again():
    rows = Dataset.from_dict({"id": ["a", "b", "c"]})
    assert len(next(_micro_batches(rows, TrainConfig(batch_size=8)))) == 8
