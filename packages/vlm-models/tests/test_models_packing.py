"""Trees of prefixes and rows of images, against brute force."""

import random
from collections.abc import Iterator

import pytest
import torch

from vlm_models.packing import deal, pack, prefix_tree


@pytest.mark.parametrize("seed", range(5))
def test_in_a_tree_each_beginning_stands_once_and_a_token_sees_what_stands_before_it_in_its_row(seed):
    draw = random.Random(seed)
    rows = sorted([draw.randrange(3) for _ in range(draw.randint(1, 7))] for _ in range(12))
    places, ends = prefix_tree(rows)
    assert len(ends) == len({tuple(row[:length]) for row in rows for length in range(1, len(row) + 1)})
    tokens = {
        place: token for row, its in zip(rows, places, strict=True) for place, token in zip(its, row, strict=True)
    }
    for row, its in zip(rows, places, strict=True):
        assert [tokens[place] for place in its] == row
        for length, place in enumerate(its, start=1):
            assert [other for other in range(place + 1) if place < ends[other]] == its[:length]


def partitions(numbers: list[int]) -> Iterator[list[list[int]]]:
    if not numbers:
        yield []
        return
    for rest in partitions(numbers[1:]):
        yield [[numbers[0]], *rest]
        for i, part in enumerate(rest):
            yield [*rest[:i], [numbers[0], *part], *rest[i + 1 :]]


@pytest.mark.parametrize("keys", [20.0, 200.0, 1e9])
def test_sizes_are_dealt_to_rows_with_nearly_the_least_work(keys):
    def work(count: int, width: int) -> float:
        return count * width * (1 + width / keys)

    def of(rows: list[list[int]]) -> float:
        return work(len(rows), max(sum(sizes[number] for number in row) for row in rows))

    draw = random.Random(0)
    for _ in range(10):
        sizes = [draw.randint(1, 60) for _ in range(6)]
        rows = deal(sizes, work)
        assert sorted(number for row in rows for number in row) == list(range(6))
        least = min(map(of, partitions(list(range(6)))))
        assert least <= of(rows) <= (4 / 3) ** 2 * least  # Graham's bound of the width, at most twice in the work


def test_what_predicts_nothing_is_left_out_and_padding_is_told():
    ids = torch.tensor([[1, 2, 3, 4, 9, 9], [1, 2, 5, 6, 7, 8], [1, 7, 7, 0, 0, 0]])
    supervised = torch.zeros_like(ids, dtype=torch.bool)
    supervised[0, 3] = supervised[1, 5] = supervised[2, 2] = True
    images = torch.full_like(ids, -1)
    images[:, 0] = torch.tensor([0, 0, 1])
    batch = {"input_ids": ids, "attention_mask": (ids > 0).long(), "image_index": torch.tensor([0, 0, 1])}
    found = pack(batch, supervised, images, [1, 1], lambda rows, width: rows * max(width, 6))
    assert found.gather(ids).tolist() == [[1, 7, 1, 2, 3, 5, 6, 7]] and found.image_index.tolist() == [1, 0]
    assert found.ends.tolist() == [[2, 2, 8, 8, 5, 8, 8, 8]] and found.padding == 0.0
    assert found.places[0, :3].tolist() == [2, 3, 4] and found.places[1, :5].tolist() == [2, 3, 5, 6, 7]
    found = pack(batch, supervised, images, [1, 1], lambda rows, width: rows * max(width, 6) ** 3)
    assert found.tokens.shape == (2, 6) and found.padding == pytest.approx(1 / 3)
    assert found.image_index.tolist() == [0, 1]
