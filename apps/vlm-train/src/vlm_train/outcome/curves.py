"""The curves of a run: loss, learning rate, evaluations."""

import io
from collections.abc import Sequence

import numpy as np

STEP_OF_EVALUATION = "validation_loss"  # the lines of metrics.jsonl that hold this are evaluations


def draw_curves(losses: Sequence[float], rates: Sequence[float], metrics: Sequence[dict], best_step: int) -> bytes:
    """A PNG picture of training's steps, and of the evaluations among the lines of metrics.jsonl.

    losses, rates: of each step; the loss of one that was skipped is NaN.
    """
    from matplotlib.figure import Figure  # half a second, which a run's start can do without
    from matplotlib.ticker import MaxNLocator

    evaluations = [line for line in metrics if STEP_OF_EVALUATION in line]
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    loss_axes, rate_axes, score_axes = figure.subplots(1, 3, width_ratios=(1.3, 0.8, 1))
    _draw_loss(loss_axes, np.asarray(losses), evaluations)
    rate_axes.plot(np.arange(1, len(rates) + 1), rates)
    rate_axes.set(title="learning rate", xlabel="optimizer step", ylim=(0, None))
    rate_axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2))
    _draw_scores(score_axes, evaluations, best_step)
    for axes in (loss_axes, rate_axes, score_axes):
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=110)
    return picture.getvalue()


def _draw_loss(axes, losses: np.ndarray, evaluations: Sequence[dict]) -> None:
    numbers = np.flatnonzero(np.isfinite(losses))
    losses, numbers = losses[numbers], numbers + 1
    window = max(1, len(losses) // 50)
    sums, ends = np.cumsum([0.0, *losses]), np.arange(1, len(losses) + 1)
    starts = np.maximum(0, ends - window)
    means = (sums[ends] - sums[starts]) / (ends - starts)
    axes.plot(numbers, losses, alpha=0.3, color="C0", label="training")
    axes.plot(numbers, means, color="C0", label=f"training, mean of {window}" if window > 1 else None)
    held_out = [line[STEP_OF_EVALUATION] for line in evaluations]
    axes.plot([line["step"] for line in evaluations], held_out, "o--", color="C1", markersize=4, label="validation")
    axes.set(title="loss (nats a token)", xlabel="optimizer step")
    if all(loss > 0 for loss in (*losses, *held_out)):
        axes.set_yscale("log")
    axes.legend(frameon=False, fontsize=8)


def _draw_scores(axes, evaluations: Sequence[dict], best_step: int) -> None:
    names = [name for name in evaluations[0] if name not in ("step", STEP_OF_EVALUATION)] if evaluations else []
    for name in names:
        values = [line[name] for line in evaluations]
        axes.plot([line["step"] for line in evaluations], values, "o-", markersize=4, label=name.replace("_", " "))
    axes.axvline(best_step, color="gray", linestyle=":", linewidth=1, label="kept")
    axes.set(title="scores on validation rows", xlabel="optimizer step", ylim=(0, None))
    axes.legend(frameon=False, fontsize=8)
