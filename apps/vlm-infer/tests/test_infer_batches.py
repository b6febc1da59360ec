"""Batches: what shares an image is together, memory does not grow with the rows, what does not fit is cut in two."""

import numpy as np
import pytest
import torch

from vlm_data import Rejected
from vlm_infer import InferError, answering, batches
from vlm_infer.answering import Answerer
from vlm_infer.batches import RowBatch
from vlm_infer.generation import Generation
from vlm_infer.model import ModelSpec
from vlm_infer.processes import Processes


class Many:
    """Rows made as they are read, three to an image; every tenth cannot be. `read_so_far` is how many were."""

    fingerprint = "many"

    def __init__(self, count: int, size: int = 0):
        self.count, self.size, self.read_so_far = count, size, 0

    def __len__(self) -> int:
        return self.count

    def read(self, positions):
        for position in positions:
            self.read_so_far += 1
            image = {
                "path": f"{position // 3}.png",
                "bytes": bytes(self.size) + b"%d" % (position // 3) if self.size else None,
            }
            row = {"id": str(position), "image": image, "prompt": "what?", "references": [], "source": "s"}
            yield Rejected("s", "bad") if position % 10 == 9 else row


def through(rows: Many, size: int) -> tuple[list[RowBatch], list[int], int]:
    """All batches, what was rejected, and the most rows that were read and not given yet."""
    rejected, found, given, ahead = [], [], 0, 0
    for batch in batches.batches(rows, range(len(rows)), size, lambda position, _: rejected.append(position)):
        ahead = max(ahead, rows.read_so_far - given - len(rejected))
        given += len(batch.rows)
        found.append(batch)
    return found, rejected, ahead


@pytest.mark.parametrize("count", [1_000, 20_000])
def test_memory_is_a_window_of_rows_however_many_there_are(count, monkeypatch):
    monkeypatch.setattr(batches, "WINDOW_ROWS", 100)
    found, rejected, ahead = through(Many(count), 8)
    positions = sorted(position for batch in found for position in batch.positions)
    assert sorted(positions + rejected) == list(range(count)) and rejected == list(range(9, count, 10))
    assert ahead == 100


def test_images_in_memory_count_by_their_bytes(monkeypatch):
    monkeypatch.setattr(batches, "WINDOW_BYTES", 10_000)
    _, _, ahead = through(Many(1_000, size=1_000), 8)
    assert ahead <= 10


def test_questions_about_an_image_are_in_one_batch():
    found, _, _ = through(Many(60), 6)
    places = {}
    for number, batch in enumerate(found):
        assert [row["id"] for row in batch.rows] == [str(position) for position in batch.positions]
        for row in batch.rows:
            places.setdefault(row["image"]["path"], set()).add(number)
    assert sum(len(numbers) > 1 for numbers in places.values()) <= len(found) - 1  # at most those at a batch's edge


@pytest.mark.parametrize("count", [1, 2, 3, 7])
@pytest.mark.parametrize("rows", [1, 5, 100, 5_000])
def test_processes_share_all_rows_and_none_twice(count, rows):
    shares = [Processes(rank, count).share(rows) for rank in range(count)]
    assert np.array_equal(np.sort(np.concatenate(shares)), np.arange(rows))
    if rows == 5_000:
        assert max(map(len, shares)) < 1.35 * min(map(len, shares))


@pytest.fixture(scope="module")
def spec() -> ModelSpec:
    return ModelSpec("tiny-git", device="cpu")


@pytest.fixture
def row(pictures) -> dict:
    image = {"path": str(pictures / "photos" / "0.png"), "bytes": None}
    return {"id": "0", "image": image, "prompt": "what?", "references": [], "source": "s"}


def short_of_memory(answerer: Answerer, fits: int, monkeypatch) -> list[int]:
    """Lets the model run out of memory above so many rows; the sizes that it is asked for."""
    sizes, generate = [], answerer.vlm.generate

    def limited(batch, **options):
        sizes.append(len(batch["input_ids"]))
        if sizes[-1] > fits:
            raise torch.OutOfMemoryError("out of memory")
        return generate(batch, **options)

    monkeypatch.setattr(answerer.vlm, "generate", limited)
    return sizes


def test_a_batch_that_does_not_fit_is_halved_and_the_size_is_kept(spec, row, monkeypatch):
    answerer = Answerer(spec, Generation(max_new_tokens=4))
    expected = [outcome.text for outcome in answerer(range(20), [row] * 20)]
    sizes = short_of_memory(answerer, 6, monkeypatch)
    assert [outcome.text for outcome in answerer(range(20), [row] * 20)] == expected
    assert sizes == [20, 10, 5, 5, 5, 5] and answerer.batch_size == 5
    assert len(answerer(range(20), [row] * 20)) == 20 and sizes[6:] == [5, 5, 5, 5]


@pytest.mark.parametrize(
    ("batch_size", "fits", "advice"), [(8, 7, "--batch-size 4 or auto"), (None, 0, "--quantization nf4")]
)
def test_out_of_memory_for_good_is_told(spec, row, monkeypatch, batch_size, fits, advice):
    answerer = Answerer(spec, Generation(max_new_tokens=4), batch_size)
    short_of_memory(answerer, fits, monkeypatch)
    with pytest.raises(InferError, match=f"out of memory on cpu with {batch_size or 1} rows; use {advice}"):
        answerer(range(8), [row] * 8)


def test_a_size_that_is_given_is_kept_to(spec, row, monkeypatch):
    answerer = Answerer(spec, Generation(max_new_tokens=4), 3)
    sizes = short_of_memory(answerer, 3, monkeypatch)
    assert len(answerer(range(8), [row] * 8)) == 8 and sizes == [3, 3, 2]


def test_outcomes_are_those_of_generate(spec, row):
    answerer = Answerer(spec, Generation(max_new_tokens=4))
    (outcome,) = answerer([0], [row])
    collate = answering.vlm_data.collator(answerer.vlm.processor, answerer.vlm.family, answerer.vlm.max_length)
    (answer,) = answerer.vlm.generate(collate.prompts([row]), max_new_tokens=4)
    assert (outcome.text, outcome.error) == (answer.text, None)
    assert outcome.logprob == pytest.approx(sum(answer.token_logprobs), abs=1e-5)
