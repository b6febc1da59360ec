"""The lines of a comparison as CSV and Markdown."""

import csv
import io
import math
from collections.abc import Sequence

from vlm_compare.statistics import Line
from vlm_eval import Comparison

COSTS = ["trained", "time", "memory", "file"]
COLUMNS = ["method", "seeds", "score", "95 % interval", "over seeds", "against baseline", "p", "p (Holm)", *COSTS]


def csv_table(lines: Sequence[Line]) -> str:
    """Plain numbers: seconds, bytes, shares."""
    out = io.StringIO()
    rows = [_numbers(line) for line in lines]
    writer = csv.DictWriter(out, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def cells_of(lines: Sequence[Line], baseline: str) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table that people read."""
    forgetting = any(line.forgotten for line in lines)
    head = [*COLUMNS, *(["on other data"] if forgetting else [])]
    head[2] = lines[0].metric.replace("_", " ")
    rows = []
    for line in lines:
        low, high = line.interval
        rows.append(
            [
                line.group + (" (baseline)" if line.group == baseline else ""),
                str(line.seeds),
                f"{line.score:.3f}",
                f"{low:.3f} to {high:.3f}",
                "" if math.isnan(line.spread) else f"± {line.spread:.3f}",
                _difference(line.against),
                "" if line.against is None else _chance(line.against.p_value),
                "" if line.holm is None else _chance(line.holm),
                f"{line.trained_share:.2%}",
                f"{line.training_seconds:.0f} s",
                f"{line.peak_memory_bytes / 2**30:.2f} GiB",
                f"{line.adapter_bytes / 1e6:.2f} MB",
                *([_difference(line.forgotten)] if forgetting else []),
            ]
        )
    return head, rows


def markdown_table(lines: Sequence[Line], baseline: str) -> str:
    head, rows = cells_of(lines, baseline)
    ruler = ["---", *["---:"] * (len(head) - 1)]
    return "".join("| " + " | ".join(row) + " |\n" for row in (head, ruler, *rows))


def _numbers(line: Line) -> dict[str, object]:
    numbers: dict[str, object] = {
        "method": line.group,
        "seeds": line.seeds,
        "metric": line.metric,
        "score": line.score,
        "score_low": line.interval[0],
        "score_high": line.interval[1],
        "standard_deviation_over_seeds": "" if math.isnan(line.spread) else line.spread,
        "score_before": line.before,
        **line.other_scores,
        "trained_share": line.trained_share,
        "steps": line.steps,
        "training_seconds": line.training_seconds,
        "peak_memory_bytes": line.peak_memory_bytes,
        "adapter_bytes": line.adapter_bytes,
        **_of(line.against, "against_baseline"),
        "against_baseline_p_holm": "" if line.holm is None else line.holm,
    }
    return numbers | _of(line.forgotten, "on_other_data") if line.forgotten else numbers


def _of(comparison: Comparison | None, name: str) -> dict[str, object]:
    if comparison is None:
        return dict.fromkeys((name, f"{name}_low", f"{name}_high", f"{name}_p"), "")
    low, high = comparison.interval
    return {name: comparison.difference, f"{name}_low": low, f"{name}_high": high, f"{name}_p": comparison.p_value}


def _difference(comparison: Comparison | None) -> str:
    if comparison is None:
        return ""
    low, high = comparison.interval
    return f"{comparison.difference:+.3f} [{low:+.3f}, {high:+.3f}]"


def _chance(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
