"""The end of a run: its files, the closing table, and the command to try next."""

import shlex

from rich.console import Console
from rich.table import Table

from vlm_train.engine.evaluate import Evaluation
from vlm_train.engine.memory import peak_memory
from vlm_train.engine.training import METRICS, Training
from vlm_train.outcome.card import apart, card_text
from vlm_train.outcome.curves import draw_curves
from vlm_train.outcome.report import image_key, report_page, score_text
from vlm_train.rows.data import Data
from vlm_train.rundir import RunDir


def write_results(
    training: Training, data: Data, before: Evaluation, after: Evaluation, record: dict, seconds: float
) -> list[tuple[str, str]]:
    """Write predictions, pictures, the card, and last of all `run.json` with the results; returns the closing table.

    `record` is what run.json held until now, `seconds` how long the run took.
    """
    out, state = training.out, training.state
    results = {
        "before": before.score_values(),
        "after": after.score_values(),
        "validation_loss": {"before": before.loss, "after": after.loss},
        "intervals": {name: score.interval for name, score in after.scores.items()},
        "signatures": {name: score.signature for name, score in after.scores.items()},
        "steps": state.step,
        "skipped_steps": state.skipped,
        "best_step": state.best.step,
        "seconds": {"training": state.seconds, "all": seconds},
        "peak_memory_bytes": peak_memory(training.vlm.device),
    }
    done = {**record, "status": "done", "results": results}
    facts = _facts(before, after, done)
    keys = [image_key(row) for row in data.val]
    out.write_lines("predictions.jsonl", _predictions(data, after, keys))
    curves = draw_curves(state.losses, state.rates, out.read_lines(METRICS), state.best.step)
    out.write_bytes("curves.png", curves)
    title = f"{training.config.model} adapted to {training.config.data}"
    out.write_text("report.html", report_page(title, facts, data.val, keys, before, after, done, curves, out.folder))
    out.write_text("README.md", card_text(done, facts, out.folder))
    out.write_json("run.json", done)
    return facts


def close(console: Console, out: RunDir, facts: list[tuple[str, str]], data: Data) -> None:
    """Show the closing table and the command to try next."""
    table = Table(show_header=False, title=str(out.folder))
    for name, value in facts:
        table.add_row(name, value)
    console.print(table)
    row = data.val[0]
    command = ["vlm-infer", "--run", str(out.folder), "--image", row["image"]["path"] or "FILE"]
    if row["prompt"]:
        command += ["--question", row["prompt"]]
    console.print(f"Look at {out.folder / 'report.html'}, then try:", highlight=False, soft_wrap=True)
    console.print(f"  uv run {shlex.join(command)}", highlight=False, soft_wrap=True, markup=False)


def headline(evaluation: Evaluation) -> str:
    name, score = evaluation.headline
    return f"{name.replace('_', ' ')} {score_text(score)} on {len(evaluation.predictions):,} rows"


def _predictions(data: Data, evaluation: Evaluation, keys: list[str]) -> list[dict]:
    """One record for each validation row, with the key of its picture and its scores by sample."""
    return [
        {
            "id": row["id"],
            "image": row["image"]["path"],
            "image_key": key,
            "prompt": row["prompt"],
            "references": row["references"],
            "prediction": prediction,
            **scores,
        }
        for row, key, prediction, scores in zip(
            data.val, keys, evaluation.predictions, evaluation.by_row(), strict=True
        )
    ]


def _facts(before: Evaluation, after: Evaluation, record: dict) -> list[tuple[str, str]]:
    """The closing table."""
    trained, results = record["trained"], record["results"]
    seconds, steps = results["seconds"], results["steps"]
    scores = [
        (name.replace("_", " "), f"{score_text(before.scores[name])} → {score_text(score)}")
        for name, score in after.scores.items()
    ]
    best = f", of which step {results['best_step']:,} is kept" if results["best_step"] != steps else ""
    skipped = f", {results['skipped_steps']} skipped" if results["skipped_steps"] else ""
    return [
        *scores,
        ("validation loss", f"{before.loss:.3f} → {after.loss:.3f} nats a token"),
        ("validation rows", f"{len(after.predictions):,}{', of images not trained on' if apart(record) else ''}"),
        (
            "trained parameters",
            f"{trained['parameters']:,} of {trained['of']:,} ({trained['parameters'] / trained['of']:.2%})",
        ),
        ("steps", f"{steps:,}{skipped}{best}"),
        ("time", f"{seconds['training']:.0f} s training, {seconds['all']:.0f} s in all"),
        ("peak memory", f"{results['peak_memory_bytes'] / 2**30:.2f} GiB"),
    ]
