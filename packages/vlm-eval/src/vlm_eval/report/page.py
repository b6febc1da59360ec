"""The page: a template, and what it shows as JSON."""

import html
import json
import math
import os
from collections import defaultdict
from collections.abc import Collection, Mapping
from importlib.resources import files
from pathlib import Path
from urllib.parse import quote

from vlm_eval.report.rows import Comparisons, Row, Run
from vlm_eval.report.thumbnails import thumbnails
from vlm_eval.score import mean_score

EMBEDDED = 2000  # pictures at most; further rows show the file, where it still is


def page(
    title: str,
    rows: list[Row],
    runs: list[Run],
    comparisons: Comparisons | None = None,
    lower_is_better: Collection[str] = (),
    folder: Path | None = None,
    sections: Mapping[str, str] | None = None,
) -> str:
    """HTML of a page that needs no other file and no network.

    Args:
        title: its heading.
        rows: n rows.
        runs: one, or two to show side by side, with the same metrics.
        comparisons: of the two runs, by metric.
        lower_is_better: metrics whose worst rows have the highest values.
        folder: where the page will be. Pictures for which there is no room in it are then shown from their files.
        sections: more to show below the scores, HTML by heading; it is put in as it is.

    Raises:
        ValueError: not one or two runs, or runs whose metrics or number of rows differ.
    """
    if len(runs) not in (1, 2):
        raise ValueError(f"{len(runs)} runs: a report shows one, or two side by side")
    for run in runs:
        lengths = {len(run.predictions), len(run.failed), *(len(score.per_sample) for score in run.scores.values())}
        if lengths != {len(rows)} or list(run.scores) != list(runs[0].scores):
            raise ValueError(f"run {run.name}: give {len(rows)} predictions, and the same metrics in all runs")
    small = thumbnails(row.image for row in _first_shown(rows, runs[0]) if row.image)
    pictures = {path: index for index, path in enumerate(small)}
    content = {
        "metrics": list(runs[0].scores),
        "lowerIsBetter": [name for name in runs[0].scores if name in lower_is_better],
        "runs": [_run(run) for run in runs],
        "comparisons": {name: vars(comparison) for name, comparison in (comparisons or {}).items()},
        "types": _tables(rows, runs),
        "pictures": list(small.values()),
        "rows": [_row(row, index, runs, pictures, folder) for index, row in enumerate(rows)],
    }
    # In a script element nothing is markup but "</script" and "<!--", which need a "<".
    data = json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    template = files("vlm_eval.report")
    text = {name: template.joinpath(name).read_text("utf-8") for name in ("page.html", "page.css", "page.js")}
    more = "".join(f"<section><h2>{html.escape(name)}</h2>{one}</section>\n" for name, one in (sections or {}).items())
    parts = {"TITLE": html.escape(title), "STYLE": text["page.css"], "SCRIPT": text["page.js"], "DATA": data}
    parts["SECTIONS"] = more
    pieces = text["page.html"].split("%%")  # one pass: a "%%DATA%%" in a caption is left alone
    return "".join(parts[piece] if index % 2 else piece for index, piece in enumerate(pieces))


def _first_shown(rows: list[Row], run: Run) -> list[Row]:
    """The rows whose pictures are embedded: all, or the worst and the best by the first metric."""
    if len(rows) <= EMBEDDED or not run.scores:
        return rows[:EMBEDDED]
    values = next(iter(run.scores.values())).per_sample
    order = sorted(range(len(rows)), key=values.__getitem__)
    half = EMBEDDED // 2
    return [rows[index] for pair in zip(order[:half], order[: -half - 1 : -1], strict=True) for index in pair]


def _run(run: Run) -> dict:
    return {
        "name": run.name,
        "failed": sum(reason is not None for reason in run.failed),
        "scores": {
            name: {"value": score.value, "interval": score.interval, "signature": score.signature}
            for name, score in run.scores.items()
        },
    }


def _row(row: Row, index: int, runs: list[Run], pictures: dict[str, int], folder: Path | None) -> dict:
    shown = {"id": row.id, "references": row.references, "types": row.types}
    if row.question is not None:
        shown["question"] = row.question
    if row.image in pictures:
        shown["picture"] = pictures[row.image]
    elif row.image is not None and folder is not None:
        shown["file"] = quote(os.path.relpath(row.image, folder).replace(os.sep, "/"))
    shown["said"] = [
        {
            "text": run.predictions[index],
            **({"failed": run.failed[index]} if run.failed[index] is not None else {}),
            "values": [_short(score.per_sample[index]) for score in run.scores.values()],
        }
        for run in runs
    ]
    return shown


def _short(value: float) -> float:
    return float(f"{value:.4g}") if math.isfinite(value) else 0.0


def _tables(rows: list[Row], runs: list[Run]) -> dict[str, list[dict]]:
    """{kind of type: rows of its table, the most frequent type first}; means of the values by row."""
    groups: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for index, row in enumerate(rows):
        for kind, label in row.types.items():
            groups[kind][label].append(index)
    return {
        kind: [
            {"label": label, "n": len(members), "runs": [_means(run, members) for run in runs]}
            for label, members in sorted(labels.items(), key=lambda item: (-len(item[1]), item[0]))
        ]
        for kind, labels in groups.items()
    }


def _means(run: Run, members: list[int]) -> dict[str, dict]:
    scores = {name: mean_score([s.per_sample[i] for i in members], name, {}) for name, s in run.scores.items()}
    return {name: {"value": score.value, "interval": score.interval} for name, score in scores.items()}
