"""Batches that are prepared ahead of the model: the same ones, whoever prepares them."""

import itertools
import threading

import pytest
from rich.console import Console

import vlm_data
import vlm_models
from vlm_train.options.config import TrainConfig
from vlm_train.processes import Processes
from vlm_train.rows.batches import Batches
from vlm_train.rows.data import read_data
from vlm_train.rows.prefetch import prefetched
from vlm_train.run import run


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_results_come_in_turn_and_few_are_made_ahead(workers):
    main, begun, pulled_by = threading.current_thread(), [], set()

    def items():
        for number in itertools.count():
            pulled_by.add(threading.current_thread())
            yield number

    def square(number):
        begun.append(number)
        return number**2, threading.current_thread()

    made = prefetched(square, items(), workers)
    results = [next(made) for _ in range(20)]
    assert [value for value, _ in results] == [number**2 for number in range(20)]
    assert pulled_by == {main} and {thread is main for _, thread in results} == {not workers}
    made.close()
    assert 20 <= len(begun) <= 20 + workers


@pytest.mark.parametrize("workers", [0, 2])
def test_what_goes_wrong_is_raised_where_it_is_asked_for(workers):
    made = prefetched(lambda number: 1 / number, [2, 1, 0, 4], workers)
    assert [next(made), next(made)] == [0.5, 1]
    with pytest.raises(ZeroDivisionError):
        next(made)
    assert list(prefetched(str, [], workers)) == []


@pytest.fixture(scope="module")
def options(captions):
    shown = {"data": str(captions / "captions.csv"), "val_rows": 4, "targets": "all", "rank": 4}
    return {"model": "tiny-git", **shown, "max_steps": 3, "batch_size": 4, "accumulate": 2, "device": "cpu"}


def test_a_run_does_not_depend_on_its_workers(options, tmp_path):
    adapters = []
    for workers in (0, 1, 2):
        folder = run(TrainConfig(**options, workers=workers, out=str(tmp_path / str(workers))))
        adapters.append((folder / "adapter" / "adapter_model.safetensors").read_bytes())
        assert (folder / "predictions.jsonl").read_bytes() == (tmp_path / "0" / "predictions.jsonl").read_bytes()
    assert adapters[0] == adapters[1] == adapters[2]


def test_any_step_can_be_entered_and_a_broken_image_is_named(options, captions, tmp_path):
    table = tmp_path / "captions.csv"
    table.write_bytes((captions / "captions.csv").read_bytes())
    for picture in captions.glob("*.png"):
        (tmp_path / picture.name).write_bytes(picture.read_bytes())
    config = TrainConfig(**{**options, "data": str(table), "workers": 2})
    rows = read_data(config, Console(quiet=True)).train
    vlm = vlm_models.load("tiny-git", device="cpu")
    batches = Batches(vlm, vlm_data.collator(vlm.processor, vlm.family), rows, None, config, Processes())
    expected = {step: [rows[number]["id"] for number in batches.order.step(step)] for step in range(8)}
    for step in (0, 1, 1, 5, 2, 3):
        parts = batches.rows(step)
        assert [row["id"] for part in parts for row in part] == expected[step] and len(parts) == 2
        made = batches.ready(parts[1], step)
        again = batches.ready(parts[1][:4], step)  # another list: made now
        assert made is not again and (made["pixel_values"] == again["pixel_values"]).all()
    batches.close()
    broken = rows[batches.order.step(6)[5]]["image"]["path"]
    with open(broken, "wb") as file:
        file.write(b"<html>")
    batches.rows(5)
    with pytest.raises(vlm_data.ImageError, match=r"\.png is HTML text") as error:
        batches.rows(6)
    assert broken in str(error.value)
    batches.close()
