"""The number of steps and the order of rows."""

import itertools
import random

import numpy as np
import pytest
import torch
from datasets import Dataset

from vlm_train.engine.loop import planned_steps, seed_all
from vlm_train.options.config import TrainConfig
from vlm_train.rows.images import DistinctImages, image_numbers
from vlm_train.rows.order import Order


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"batch_size": 10}, 10),
        ({"batch_size": 10, "accumulate": 2}, 5),
        ({"batch_size": 10, "epochs": 2.5}, 25),
        ({"batch_size": 10, "max_steps": 3}, 3),
        ({"batch_size": 10, "max_steps": 30}, 30),
        ({"batch_size": 10, "max_steps": 30, "epochs": 2}, 20),
        ({"batch_size": 1000}, 1),
    ],
)
def test_planned_steps(options, steps):
    assert planned_steps(100, TrainConfig(**options)) == steps


def test_every_epoch_holds_every_row_once_in_an_order_of_its_own():
    order = Order(range(12), size=4, seed=3)
    first, second = ([row for step in steps for row in order.step(step)] for steps in ((0, 1, 2), (3, 4, 5)))
    assert sorted(first) == sorted(second) == list(range(12))
    assert first != second != list(range(12))
    assert Order(range(12), size=4, seed=4).step(0) != order.step(0)


def test_two_rows_of_an_image_are_neighbours():
    images = [0] * 5 + [1] * 2 + [2] + [3] * 4
    order = Order(images, size=12, seed=0)
    first, second = order.step(0), order.step(1)
    assert sorted(first) == sorted(second) == list(range(12)) and first != second
    for rows in (first, second):
        runs = [len(list(run)) for _, run in itertools.groupby(rows, key=lambda row: images[row])]
        alone = [run for run in runs if run % 2]
        assert len(alone) <= 2  # of the images with five rows and with one
    pairs = {tuple(sorted(rows)) for step in range(40) for rows in itertools.pairwise(order.step(step))}
    assert {(a, b) for a in range(5) for b in range(a)} <= {pair[::-1] for pair in pairs}  # any two, in some epoch


def test_any_step_can_be_entered_and_steps_do_not_end_with_epochs():
    order = Order(range(10), size=4, seed=0)
    ahead = [row for step in range(5) for row in order.step(step)]
    assert sorted(ahead[:10]) == sorted(ahead[10:]) == list(range(10))
    assert [row for step in (4, 3, 2, 1, 0) for row in reversed(order.step(step))] == ahead[::-1]
    assert [order.epoch(step) for step in range(6)] == [0, 0, 0, 1, 1, 2]


def test_a_step_may_be_larger_than_the_data():
    rows = Order(range(3), size=8, seed=0).step(0)
    assert sorted(rows[:3]) == sorted(rows[3:6]) == [0, 1, 2] and len(rows) == 8


def test_what_is_random_follows_from_seed_step_and_process():
    def drawn(*place):
        seed_all(*place)
        return torch.rand(3).tolist(), random.random(), np.random.rand()

    assert drawn(0, 5, 0) == drawn(0, 5, 0)
    assert len({drawn(*place)[1] for place in ((0, 5, 0), (1, 5, 0), (0, 6, 0), (0, 5, 1))}) == 4


def test_distinct_images_are_those_that_the_rows_show():
    one, two, three = ({"path": None, "bytes": content} for content in (b"1", b"2", b"3"))
    file = {"path": "a.png", "bytes": None}
    rows = Dataset.from_dict(
        {"image": [two, file, one, two, file], "images": [None, None, [one, three], [two], None], "id": list("abcde")}
    )
    found = DistinctImages(rows)
    assert len(found) == 4 and list(found) == [two, file, one, three]
    assert list(found[1::2]) == [file, three] and found[-1] == three
    assert image_numbers(rows) == [0, 1, 2, 0, 1]
