"""The bootstrap interval against exact binomial quantiles and a resampling loop; what a Score prints."""

import subprocess
import sys
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm_eval import Score, exact_match
from vlm_eval.score import bootstrap_interval, mean_score, signature


def binomial_quantile(n: int, p: float, level: float) -> int:
    below = 0.0
    for k in range(n + 1):
        below += comb(n, k) * p**k * (1 - p) ** (n - k)
        if below >= level:
            return k


@pytest.mark.parametrize(("n", "right"), [(50, 5), (400, 300), (1000, 912)])
def test_interval_of_zeros_and_ones_has_binomial_quantiles(n, right):
    score = mean_score([1.0] * right + [0.0] * (n - right), "x", {})
    exact = [binomial_quantile(n, right / n, level) / n for level in (0.025, 0.975)]
    deviation = (right / n * (1 - right / n) / n) ** 0.5
    assert score.value == right / n
    assert score.interval == pytest.approx(exact, abs=max(0.35 * deviation, 1.01 / n))


def test_interval_of_a_ratio_of_sums_equals_a_resampling_loop():
    generator = np.random.default_rng(7)
    rows = generator.integers(1, 20, size=(60, 2)).astype(float)
    loop = []
    for _ in range(4000):
        total = rows[generator.integers(60, size=60)].sum(0)
        loop.append(total[0] / total[1])
    interval = bootstrap_interval(rows, lambda sums: sums[:, 0] / sums[:, 1])
    assert interval == pytest.approx(np.percentile(loop, [2.5, 97.5]), abs=0.25 * np.std(loop))


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.randoms())
def test_row_order_never_changes_value_or_interval(per_sample, random):
    shuffled = random.sample(per_sample, len(per_sample))
    first, second = mean_score(per_sample, "x", {}), mean_score(shuffled, "x", {})
    assert first.value == second.value
    assert first.interval == second.interval
    assert min(per_sample) - 1e-12 <= first.interval[0] <= first.interval[1] <= max(per_sample) + 1e-12


def test_one_row_has_an_interval_of_no_width():
    assert exact_match(["a"], ["a"]).interval == (1.0, 1.0)


def test_a_score_prints_its_name_value_interval_and_size():
    score = Score(0.9124, [0.0] * 2500, (0.901, 0.9238), "exact_match|norm:lower", {})
    assert str(score) == "exact_match 0.912 [0.90, 0.92] n=2500"


def test_the_signature_names_choices_and_the_range_of_references():
    assert signature("m", [["a"], ["b"]], tok="x") == "m|tok:x|refs:1|bs:1000|seed:0"
    assert signature("m", [["a"], ["b"] * 5]) == "m|refs:1-5|bs:1000|seed:0"


def test_importing_the_package_imports_no_heavy_library():
    heavy = "{'torch', 'transformers', 'evaluate', 'datasets', 'bert_score', 'pandas'}"
    code = f"import sys, vlm_eval; print({heavy} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"
