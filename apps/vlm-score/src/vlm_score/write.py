"""What is written: scores as JSON and Markdown, rows as CSV."""

import csv
import io
import json
from importlib.metadata import version

from vlm_eval import Score
from vlm_eval.report import Comparisons, Row, Run


def scores_json(rows: list[Row], runs: list[Run], comparisons: Comparisons, left_out: dict[str, list[str]]) -> str:
    """Everything but the rows."""
    record = {
        "rows": len(rows),
        "left_out": left_out,
        "runs": [
            {
                "name": run.name,
                "failed": sum(reason is not None for reason in run.failed),
                "scores": {name: _score(score) for name, score in run.scores.items()},
            }
            for run in runs
        ],
        "comparisons": {name: vars(comparison) for name, comparison in comparisons.items()},
        "versions": {"vlm-eval": version("vlm-eval")},
    }
    return json.dumps(record, indent=2, ensure_ascii=False) + "\n"


def _score(score: Score) -> dict:
    return {
        "value": score.value,
        "interval": score.interval,
        "signature": score.signature,
        "details": score.details,
    }


def rows_csv(rows: list[Row], runs: list[Run]) -> str:
    """One line a row: what was asked, what each run answered, and its scores. References are a JSON list."""
    file = io.StringIO()
    writer = csv.writer(file)
    marks = [""] if len(runs) == 1 else [f"_{letter}" for letter in "ab"]
    head = ["id", "image", "question", "references"]
    for mark, run in zip(marks, runs, strict=True):
        head += [name + mark for name in ("prediction", "failed", *run.scores)]
    writer.writerow(head)
    for index, row in enumerate(rows):
        line = [row.id, row.image or "", row.question or "", json.dumps(row.references, ensure_ascii=False)]
        for run in runs:
            line += [run.predictions[index], run.failed[index] or ""]
            line += [score.per_sample[index] for score in run.scores.values()]
        writer.writerow(line)
    return file.getvalue()


def scores_markdown(rows: list[Row], runs: list[Run], comparisons: Comparisons) -> str:
    """Tables of the scores with their signatures, and of the comparison."""
    lines = []
    for run in runs:
        failed = sum(reason is not None for reason in run.failed)
        lines += [
            f"## {run.name}",
            "",
            f"{len(rows):,} rows, {failed:,} of them without a prediction (they count as wrong).",
        ]
        lines += ["", "| metric | value | 95 % interval | signature |", "|---|---|---|---|"]
        for name, score in run.scores.items():
            low, high = score.interval
            signature = score.signature.replace("|", "\\|")
            lines.append(f"| {name} | {score.value:.4f} | {low:.4f} to {high:.4f} | `{signature}` |")
        lines.append("")
    if comparisons:
        lines += [f"## {runs[0].name} minus {runs[1].name}, by row", ""]
        lines += [
            "| metric | difference | 95 % interval | p | better | equal | worse |",
            "|---|---|---|---|---|---|---|",
        ]
        for name, c in comparisons.items():
            low, high = c.interval
            lines.append(
                f"| {name} | {c.difference:+.4f} | {low:+.4f} to {high:+.4f} | {c.p_value:.3g} "
                f"| {c.better} | {c.equal} | {c.worse} |"
            )
        lines.append("")
    return "\n".join(lines)
