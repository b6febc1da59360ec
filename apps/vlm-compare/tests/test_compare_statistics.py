"""The numbers of a comparison, from runs whose results are made up."""

import csv
import io
import json
import statistics

import numpy as np
import pytest

import vlm_eval
from vlm_compare.cells import Cell
from vlm_compare.page import comparison_page
from vlm_compare.statistics import holm, lines_of, read_outcome
from vlm_compare.tables import csv_table, markdown_table

ROWS = 30


def make_run(folder, values, seconds=2.0, metric="exact_match"):
    """The files of a finished run with these values of rows r0, r1, …, three to an image."""
    (folder / "adapter").mkdir(parents=True)
    (folder / "adapter" / "weights").write_bytes(bytes(1000))
    lines = [
        {"id": f"r{number}", "image_key": f"i{number // 3}", metric: value, "bleu": 0.5}
        for number, value in enumerate(values)
    ]
    (folder / "predictions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    after = {metric: sum(values) / len(values), "bleu": 0.25}
    results = {
        "after": after,
        "before": dict.fromkeys(after, 0.1),
        "steps": 7,
        "seconds": {"training": seconds},
        "peak_memory_bytes": 2**30,
    }
    record = {"results": results, "trained": {"parameters": 10, "of": 1000}}
    (folder / "run.json").write_text(json.dumps(record))


@pytest.fixture
def outcomes(tmp_path):
    """Two methods with two seeds: {group: [values of seed 0, of seed 1]}, and what is read of them."""
    generator = np.random.default_rng(0)
    values = {
        "lora": [(generator.random(ROWS) < 0.8).astype(float).tolist() for _ in range(2)],
        "prefix": [(generator.random(ROWS) < 0.4).astype(float).tolist() for _ in range(2)],
    }
    read = []
    for method, of_seeds in values.items():
        for seed, of_rows in enumerate(of_seeds):
            cell = Cell(method, (), seed)
            make_run(tmp_path / cell.name, of_rows, seconds=2.0 + seed)
            read.append(read_outcome(cell, tmp_path / cell.name, None))
    return values, read


def test_scores_are_means_over_rows_and_seeds(outcomes):
    values, read = outcomes
    lora, prefix = lines_of(read, "lora")
    assert lora.score == pytest.approx(np.mean(values["lora"]))
    assert lora.spread == pytest.approx(statistics.stdev(np.mean(values["lora"], axis=1).tolist()))
    assert lora.interval[0] < lora.score < lora.interval[1] and lora.against is None and lora.holm is None
    assert (lora.trained_share, lora.training_seconds, lora.adapter_bytes, lora.steps) == (0.01, 2.5, 1000, 7)
    assert lora.other_scores == {"bleu": 0.25} and prefix.runs == ["prefix-seed0", "prefix-seed1"]


def test_tests_are_paired_by_row_and_seed_and_clustered_by_image(outcomes):
    values, read = outcomes
    line = lines_of(read, "lora")[1]
    difference = np.array(values["prefix"]) - np.array(values["lora"])
    assert line.against.difference == pytest.approx(difference.mean())
    assert (line.against.rows, line.against.clusters) == (2 * ROWS, ROWS // 3)
    flipped = difference.reshape(2, ROWS // 3, 3).sum((0, 2))  # of an image: its three rows in two runs
    expected = vlm_eval.compare(flipped.tolist(), [0.0] * len(flipped))
    assert line.against.p_value == expected.p_value == line.holm


def test_a_seed_again_brings_no_certainty(tmp_path):
    values = (np.random.default_rng(1).random(ROWS) < 0.7).astype(float).tolist()
    read = []
    for seed in range(3):
        cell = Cell("lora", (), seed)
        make_run(tmp_path / cell.name, values)
        read.append(read_outcome(cell, tmp_path / cell.name, None))
    (once,), (thrice,) = lines_of(read[:1], "lora"), lines_of(read, "lora")
    assert thrice.interval == pytest.approx(once.interval) and thrice.spread == pytest.approx(0)


def test_holm():
    # worked by hand: 4 · 0.005, 3 · 0.01, 2 · 0.03, and not below it, 0.04
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == []


def test_forgetting_is_against_the_base_model_on_the_same_rows(outcomes, tmp_path):
    _, read = outcomes
    other = tmp_path / "forgetting"
    other.mkdir()
    ids = [f"o{number}" for number in range(10)]

    def write(name, values):
        (other / f"{name}.json").write_text(json.dumps({"ids": ids, "values": {"exact_match": values}}))

    write("base", [1.0] * 8 + [0.0] * 2)
    for seed in range(2):
        write(f"prefix-seed{seed}", [1.0] * (5 + seed) + [0.0] * (5 - seed))
    lora, prefix = lines_of(read, "lora", other)
    assert lora.forgotten is None
    assert prefix.forgotten.difference == pytest.approx(0.55 - 0.8) and prefix.forgotten.clusters == 10


def test_tables_and_page_hold_the_same_lines(outcomes):
    _, read = outcomes
    lines = lines_of(read, "lora")
    rows = list(csv.DictReader(io.StringIO(csv_table(lines))))
    assert [row["method"] for row in rows] == ["lora", "prefix"]
    assert float(rows[1]["against_baseline"]) == lines[1].against.difference and rows[0]["against_baseline"] == ""
    text = markdown_table(lines, "lora").splitlines()
    assert len({line.count("|") for line in text}) == 1 and text[2].startswith("| lora (baseline) | 2 |")
    page = comparison_page("<b>", lines, "lora", [("full-seed0", "out of <memory>")], ["a note"])
    assert "<b>" not in page and "out of &lt;memory&gt;" in page and "a note" in page
    assert 'href="runs/prefix-seed1/report.html"' in page and "data:image/png;base64," in page
