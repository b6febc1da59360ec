"""Paired tests against enumeration, a resampling loop, and a normal approximation."""

import itertools
import math
from statistics import NormalDist

import numpy as np
import pytest

from vlm_eval import compare, exact_match


def enumerated(differences: list[float], labels: list) -> float:
    """The sign-flip test, one flip of all clusters at a time."""
    sums = [
        sum(d for d, own in zip(differences, labels, strict=True) if own == label) for label in dict.fromkeys(labels)
    ]
    observed, far = abs(sum(sums)), 0
    for signs in itertools.product((1, -1), repeat=len(sums)):
        far += abs(sum(s * x for s, x in zip(signs, sums, strict=True))) >= observed - 1e-9
    return far / 2 ** len(sums)


@pytest.mark.parametrize("n", [1, 2, 5, 9])
@pytest.mark.parametrize("images", [2, 20])
@pytest.mark.parametrize("binary", [True, False])
def test_few_rows_are_enumerated(n, images, binary):
    generator = np.random.default_rng(n + images)
    a, b = generator.random((2, n)).round(binary and 0 or 3)
    labels = generator.integers(images, size=n).tolist()
    assert compare(a, b, labels).p_value == enumerated((a - b).tolist(), labels)
    assert compare(a, b).p_value == enumerated((a - b).tolist(), list(range(n)))


def test_many_rows_come_near_to_the_normal_approximation():
    generator = np.random.default_rng(0)
    differences = generator.normal(0.05, 1, 1000)
    expected = 2 * NormalDist().cdf(-abs(differences.sum()) / math.sqrt((differences**2).sum()))
    assert compare(differences, np.zeros(1000)).p_value == pytest.approx(expected, abs=0.01)


def test_the_interval_equals_a_loop_that_draws_images():
    generator = np.random.default_rng(1)
    labels = generator.integers(40, size=200)
    a, b = generator.random((2, 200)) + generator.normal(size=40)[labels] * [[1], [0.5]]
    loop = []
    for _ in range(4000):
        drawn = np.concatenate([np.flatnonzero(labels == i) for i in generator.choice(np.unique(labels), 40)])
        loop.append((a - b)[drawn].mean())
    comparison = compare(a, b, labels.tolist())
    assert comparison.interval == pytest.approx(np.percentile(loop, [2.5, 97.5]), abs=0.25 * np.std(loop))
    assert comparison.clusters == len(np.unique(labels))
    alone = compare(a, b).interval
    assert np.subtract(*comparison.interval) < 1.5 * np.subtract(*alone)  # both negative: clusters widen it


def test_rows_of_one_image_told_apart_make_differences_look_surer_than_they_are():
    a, b = [1.0] * 50, [0.0] * 50
    assert compare(a, b).p_value < 1e-3
    assert compare(a, b, ["same image"] * 50).p_value == 1


def test_swapping_turns_the_sign_and_order_changes_nothing():
    generator = np.random.default_rng(2)
    a, b = generator.random((2, 60))
    labels = generator.integers(30, size=60)
    one, other = compare(a, b, labels.tolist()), compare(b, a, labels.tolist())
    assert (one.difference, one.better, one.worse) == (-other.difference, other.worse, other.better)
    order = generator.permutation(60)
    turned = compare(a[order], b[order], labels[order].tolist())
    assert turned.difference == one.difference
    assert turned.p_value == pytest.approx(one.p_value, abs=1e-12) and turned.interval == pytest.approx(one.interval)


def test_equal_scores_do_not_differ():
    score = exact_match(["a", "b"], ["a", "c"])
    comparison = compare(score, score)
    assert (comparison.difference, comparison.p_value, comparison.equal) == (0, 1, 2)
    assert str(comparison).startswith("+0.000 [+0.000, +0.000] p=1 ")


@pytest.mark.parametrize(
    ("a", "b", "clusters", "message"),
    [
        (exact_match(["a"], ["a"]), exact_match(["a"], ["a"], "raw"), None, "norm:lower.* and .*norm:raw"),
        ([1, 2], [1], None, "2 and 1 values"),
        ([], [], None, "at least one row"),
        ([1, math.nan], [1, 1], None, "row 1: a value is not finite"),
        ([1, 2], [1, 1], ["x"], "1 clusters but 2 rows"),
    ],
)
def test_what_cannot_be_compared_is_refused(a, b, clusters, message):
    with pytest.raises(ValueError, match=message):
        compare(a, b, clusters)
