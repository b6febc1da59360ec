"""Batches by length: every row once, a function of the arguments, and little padding."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import vlm_data
from vlm_data import DataError


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 500), max_size=300),
    batch_size=st.integers(1, 17),
    seed=st.integers(0, 2**32 - 1),
    epoch=st.integers(0, 5),
)
def test_every_row_is_in_one_batch(lengths, batch_size, seed, epoch):
    found = vlm_data.batches(lengths, batch_size, seed, epoch)
    assert sorted(row for batch in found for row in batch) == list(range(len(lengths)))
    assert all(len(batch) == batch_size for batch in found[:-1])
    assert found == vlm_data.batches(np.array(lengths), batch_size, seed, epoch)


def test_seed_and_epoch_give_other_orders():
    lengths = list(range(100)) * 3
    orders = [str(vlm_data.batches(lengths, 8, seed, epoch)) for seed in range(3) for epoch in range(3)]
    assert len(set(orders)) == 9


def padding(lengths, found) -> float:
    """The share of a padded batch that is padding, over all batches."""
    padded = sum(len(batch) * max(lengths[batch]) for batch in found)
    return 1 - sum(lengths[batch].sum() for batch in found) / padded


def test_rows_of_a_batch_have_similar_lengths():
    lengths = np.random.RandomState(0).lognormal(4, 0.8, 5000).astype(int) + 1
    shuffled = np.random.RandomState(1).permutation(len(lengths))
    at_random = padding(lengths, [shuffled[start : start + 16] for start in range(0, len(lengths), 16)])
    found = vlm_data.batches(lengths, 16)
    assert at_random > 0.6 and padding(lengths, found) < 0.25
    # and in random order: the first half of the batches is as long as the second
    halves = [np.mean(lengths[sum(half, [])]) for half in (found[:156], found[156:312])]
    assert abs(halves[0] - halves[1]) < 12  # of 75; three standard deviations


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"batch_size": 2, "seed": -1}])
def test_refusals(options):
    with pytest.raises(DataError, match="1 row or more, and a seed from 0"):
        vlm_data.batches([1, 2], **options)
