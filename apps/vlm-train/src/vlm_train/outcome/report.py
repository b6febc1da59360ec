"""`report.html`: one page with scores, curves, configuration, and what was answered to each picture, in one file."""

import base64
import html
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from datasets import Dataset

import vlm_eval
from vlm_data import content_key
from vlm_eval.report import Row, Run, page
from vlm_train.engine.evaluate import Evaluation

SHOWN = 1000  # rows; scores are of all


def report_page(
    title: str,
    facts: Sequence[tuple[str, str]],
    rows: Dataset,
    keys: Sequence[str],
    before: Evaluation,
    after: Evaluation,
    record: dict[str, Any],
    curves: bytes,
    folder: Path,
) -> str:
    """HTML that needs no other file. `facts` is the closing table, `keys` are those of the rows' pictures,
    `record` is what run.json holds, `curves` a PNG.
    """
    total = len(after.predictions)
    numbers = list(range(0, total, -(-total // SHOWN)))
    shown = rows.select(numbers).to_list()
    # Only what scores every row can stand beside every row.
    metrics = [name for name, score in after.scores.items() if len(score.per_sample) == total]
    comparisons = {name: vlm_eval.compare(after.scores[name], before.scores[name], keys) for name in metrics}
    sections = {
        "Training": _table(facts) + f'<p><img src="{_address(curves)}" alt="curves" style="max-width:100%"></p>',
        "Configuration": _folded("Options", record["config"])
        + _folded("Model, data, versions", {name: record[name] for name in ("model", "data", "versions")})
        + _folded("Environment", record.get("environment", {})),
    }
    if len(numbers) < total:
        sections["Training"] += f"<p class=soft>Below are {len(numbers):,} of the {total:,} validation rows.</p>"
    with tempfile.TemporaryDirectory() as pictures:
        return page(
            title,
            [_row(row, Path(pictures)) for row in shown],
            [_run("after", after, metrics, numbers), _run("before", before, metrics, numbers)],
            comparisons,
            folder=folder,
            sections=sections,
        )


def image_key(row: dict) -> str:
    """What rows of one picture have in common."""
    return row.get("pixels") or content_key(row["image"])


def _row(row: dict, pictures: Path) -> Row:
    """A row of the page; a picture that is in memory is put into a file for it to read."""
    path = row["image"]["path"]
    if row["image"]["bytes"] is not None:
        file = pictures / content_key(row["image"])
        if not file.exists():
            file.write_bytes(row["image"]["bytes"])
        path = str(file)
    types = {name: row[name] for name in ("question_type", "answer_type") if row.get(name)}
    return Row(row["id"], row["references"], row["prompt"], path, types)


def _run(name: str, evaluation: Evaluation, metrics: list[str], numbers: list[int]) -> Run:
    scores = {metric: evaluation.scores[metric] for metric in metrics}
    return Run(
        name,
        [evaluation.predictions[number] for number in numbers],
        [None] * len(numbers),
        {
            metric: replace(score, per_sample=[score.per_sample[number] for number in numbers])
            for metric, score in scores.items()
        },
    )


def _table(facts: Sequence[tuple[str, str]]) -> str:
    rows = "".join(f"<tr><td>{html.escape(name)}</td><td>{html.escape(value)}</td></tr>" for name, value in facts)
    return f'<div class="wide"><table>{rows}</table></div>'


def _folded(name: str, content: dict[str, Any]) -> str:
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100)
    return f"<details><summary>{html.escape(name)}</summary><pre>{html.escape(text)}</pre></details>"


def _address(picture: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(picture).decode()


def score_text(score: vlm_eval.Score) -> str:
    low, high = score.interval
    return f"{score.value:.3f} [{low:.3f}, {high:.3f}]"
