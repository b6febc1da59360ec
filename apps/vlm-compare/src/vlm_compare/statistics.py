"""What the finished runs of a comparison say: scores with intervals, paired tests, costs.

Rows are paired by seed and id, and drawn and flipped together by image, also over seeds: two rows of one image, or one
row in two runs, are not two observations.
"""

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import vlm_eval
from vlm_compare.cells import Cell
from vlm_eval import Comparison

Values = dict[tuple[int, str], float]  # of one metric, by seed and row


@dataclass(frozen=True)
class Outcome:
    """A finished cell, read from its folder; seconds, bytes and shares as their names say."""

    cell: Cell
    metric: str
    values: dict[str, float]  # of a row, by id
    images: dict[str, str]
    scores: dict[str, float]  # by metric
    before: float
    steps: int
    trained_share: float
    training_seconds: float
    peak_memory_bytes: int
    adapter_bytes: int


@dataclass(frozen=True)
class Line:
    """A group of the comparison, over its seeds. `against` is its comparison with the baseline, None for that itself.

    `spread` is the standard deviation of the score over seeds, nan for one; `holm` the p-value corrected for the number
    of comparisons (Holm 1979); `forgotten` compares other data with the base model, there.
    """

    group: str
    seeds: int
    metric: str
    score: float
    interval: tuple[float, float]
    spread: float
    before: float
    other_scores: dict[str, float]
    against: Comparison | None
    holm: float | None
    trained_share: float
    training_seconds: float
    peak_memory_bytes: float
    adapter_bytes: float
    steps: float
    forgotten: Comparison | None = None
    runs: list[str] = field(default_factory=list)


def read_outcome(cell: Cell, folder: Path, metric: str | None) -> Outcome:
    """What a finished run wrote; `metric` is the score to compare, by default the run's first."""
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    results, trained = record["results"], record["trained"]
    name = metric if metric in results["after"] else next(iter(results["after"]))
    lines = (folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if name in row]
    return Outcome(
        cell=cell,
        metric=name,
        values={row["id"]: row[name] for row in rows},
        images={row["id"]: row["image_key"] for row in rows},
        scores=results["after"],
        before=results["before"][name],
        steps=results["steps"],
        trained_share=trained["parameters"] / trained["of"],
        training_seconds=results["seconds"]["training"],
        peak_memory_bytes=results["peak_memory_bytes"],
        adapter_bytes=sum(file.stat().st_size for file in (folder / "adapter").rglob("*") if file.is_file()),
    )


def lines_of(outcomes: Sequence[Outcome], baseline: str, forgetting: Path | None = None) -> list[Line]:
    """One line for each group of which a run is done, in the order of the cells; the best score is not put first."""
    groups: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault(outcome.cell.group, []).append(outcome)
    base = _values(groups.get(baseline, []))
    images = {(one.cell.seed, row): image for one in outcomes for row, image in one.images.items()}
    against = {}
    for group, members in groups.items():
        common = sorted(base.keys() & _values(members).keys())
        if group != baseline and common:
            own = _values(members)
            against[group] = vlm_eval.compare(
                [own[key] for key in common], [base[key] for key in common], [images[key] for key in common]
            )
    corrected = dict(zip(against, holm([one.p_value for one in against.values()]), strict=True))
    return [
        _line(group, members, images, against.get(group), corrected.get(group), forgetting)
        for group, members in groups.items()
    ]


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values such that all of them below α have together at most α of being wrong (Holm 1979)."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    corrected, highest = [0.0] * len(p_values), 0.0
    for place, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - place) * p_values[index]))
        corrected[index] = highest
    return corrected


def _values(members: Sequence[Outcome]) -> Values:
    return {(one.cell.seed, row): value for one in members for row, value in one.values.items()}


def _line(
    group: str,
    members: list[Outcome],
    images: dict[tuple[int, str], str],
    against: Comparison | None,
    corrected: float | None,
    forgetting: Path | None,
) -> Line:
    values = _values(members)
    # Against nothing, the interval of a difference is that of the mean, drawn by image.
    alone = vlm_eval.compare(list(values.values()), [0.0] * len(values), [images[key] for key in values])
    by_seed = [statistics.fmean(one.values.values()) for one in members]

    def mean(name: str) -> float:
        return statistics.fmean(getattr(one, name) for one in members)

    return Line(
        group=group,
        seeds=len(members),
        metric=members[0].metric,
        score=alone.difference,
        interval=alone.interval,
        spread=statistics.stdev(by_seed) if len(members) > 1 else math.nan,
        before=mean("before"),
        other_scores={
            name: statistics.fmean(one.scores[name] for one in members)
            for name in members[0].scores
            if name != members[0].metric
        },
        against=against,
        holm=corrected,
        trained_share=mean("trained_share"),
        training_seconds=mean("training_seconds"),
        peak_memory_bytes=mean("peak_memory_bytes"),
        adapter_bytes=mean("adapter_bytes"),
        steps=mean("steps"),
        forgotten=_forgotten(members, forgetting) if forgetting else None,
        runs=[one.cell.name for one in members],
    )


def _forgotten(members: list[Outcome], folder: Path) -> Comparison | None:
    """The trained runs against the base model on the other data, rows over seeds together."""
    base = json.loads((folder / "base.json").read_text(encoding="utf-8"))
    metric = next(iter(base["values"]))
    after, before, rows = [], [], []
    for one in members:
        file = folder / f"{one.cell.name}.json"
        if file.exists():
            after += json.loads(file.read_text(encoding="utf-8"))["values"][metric]
            before += base["values"][metric]
            rows += base["ids"]
    return vlm_eval.compare(after, before, rows) if rows else None
