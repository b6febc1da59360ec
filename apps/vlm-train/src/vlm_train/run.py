"""One run from configuration to results: read, load, evaluate, train, evaluate, write."""

import shlex
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
import transformers
from rich.console import Console
from rich.table import Table
from rich.text import Text

import peft_methods
import vlm_data
import vlm_models
from vlm_train import report
from vlm_train.config import ConfigError, TrainConfig
from vlm_train.data import Data, fitting, read_data
from vlm_train.evaluate import Evaluation, evaluate
from vlm_train.features import encode_once
from vlm_train.loop import Step, planned_steps, train
from vlm_train.memory import peak_memory
from vlm_train.methods import method_of
from vlm_train.progress import Tracker, track
from vlm_train.rundir import RunDir, choose_folder, describe_run

UserError = (
    ConfigError,
    vlm_data.DataError,
    vlm_data.ImageError,
    vlm_models.ModelError,
    peft_methods.TargetError,
    peft_methods.AdapterError,
)
LOG_EVERY = 10  # steps


def run(config: TrainConfig) -> Path:
    """Train as configured; returns the folder of the run. Raises one of `UserError` before anything is written."""
    console = Console()
    _quiet()
    folder = choose_folder(config)
    data = read_data(config, console)
    config, vlm = _load(config, console)
    attachment = peft_methods.attach(vlm.model, method_of(config, vlm))
    cache = _cache(config, vlm)
    collate = vlm_data.collator(vlm.processor, vlm.family, vlm.max_length)
    data = fitting(data, collate, config)
    if data.rejected:
        console.print(f"{len(data.rejected)} rows rejected, see rejected.jsonl in {folder}", style="yellow")
    steps = planned_steps(len(data.train), config)
    console.print(
        f"{config.model} · {config.method} on {attachment.trainable:,} of {attachment.total:,} parameters · "
        f"{len(data.train):,} training and {len(data.val):,} validation rows · {steps:,} steps on {vlm.device}",
        highlight=False,
        soft_wrap=True,
    )

    folder.mkdir(parents=True, exist_ok=True)
    out = RunDir(folder)
    trained = {"parameters": attachment.trainable, "of": attachment.total}
    record = describe_run(config, vlm, data.train, data.val, trained)
    out.write_json("run.json", record)
    out.write_lines("rejected.jsonl", [rejected.as_dict() for rejected in data.rejected])

    started = time.perf_counter()
    before = evaluate(vlm, collate, data.val, console, "evaluating before")
    out.append("metrics.jsonl", {"step": 0, **_values(before)})
    console.print(f"before: {_headline(before)}", highlight=False)
    ahead = steps * config.batch_size * config.accumulate >= len(data.train)  # else not every image is shown
    features = encode_once(cache, collate, data.train, console, ahead) if cache is not None else None
    train_started = time.perf_counter()
    log: list[Step] = []
    try:
        with track(console, "training", steps) as progress:
            train(vlm, attachment, collate, data.train, features, config, _keep(log, steps, out, progress))
    except (KeyboardInterrupt, vlm_models.ModelError) as stop:
        attachment.save(out.adapter, base_model=config.model)
        out.write_json("run.json", {**record, "status": f"interrupted after step {len(log)} of {steps}"})
        console.print(f"interrupted after step {len(log)} of {steps}; the adapter so far is in {out.adapter}")
        if isinstance(stop, KeyboardInterrupt):
            raise SystemExit(130) from None
        raise
    train_seconds = time.perf_counter() - train_started
    attachment.save(out.adapter, base_model=config.model)
    after = evaluate(vlm, collate, data.val, console, "evaluating after")
    out.append("metrics.jsonl", {"step": steps, **_values(after)})

    predictions = _predictions(data, after)
    results = {
        "before": _values(before),
        "after": _values(after),
        "intervals": {name: score.interval for name, score in after.scores.items()},
        "signatures": {name: score.signature for name, score in after.scores.items()},
        "steps": len(log),
        "seconds": {"training": train_seconds, "all": time.perf_counter() - started},
        "peak_memory_bytes": peak_memory(vlm.device),
    }
    facts = _facts(before, after, record, results)
    out.write_lines("predictions.jsonl", predictions)
    report.curves(out, log)
    report.page(out, f"{config.model} adapted to {config.data}", facts, data.val, predictions)
    report.card(out, record, facts)
    out.write_json("run.json", {**record, "status": "done", "results": results})
    _close(console, out, facts, data)
    return folder


def _keep(log: list[Step], steps: int, out: RunDir, progress: Tracker) -> Callable[[Step], None]:
    """What to do after each step: remember it, show it, and every so often write it down."""

    def after_step(step: Step) -> None:
        log.append(step)
        rate = sum(s.rows for s in log[-20:]) / sum(s.seconds for s in log[-20:])
        progress.at(step.step, note=f"loss {step.loss:.3f}  {rate:.0f} rows/s")
        if step.step % LOG_EVERY == 0 or step.step == steps:
            numbers = {"loss": step.loss, "learning_rate": step.learning_rate, "rows_per_second": rate}
            out.append("metrics.jsonl", {"step": step.step, **numbers})

    return after_step


def _values(evaluation: Evaluation) -> dict[str, float]:
    return {name: score.value for name, score in evaluation.scores.items()}


def show(config: TrainConfig) -> None:
    """Print one training row as the model sees it, the supervised tokens marked."""
    console = Console()
    _quiet()
    data = read_data(config, console)
    config, vlm = _load(config, console)
    collate = vlm_data.collator(vlm.processor, vlm.family, vlm.max_length)
    row = data.train[0]
    batch = collate([row])
    text = Text()
    for token, label in zip(batch["input_ids"][0].tolist(), batch["labels"][0].tolist(), strict=True):
        word = vlm.processor.tokenizer.decode([token])
        text.append(word.replace("\n", "\\n") + "·", style="dim" if label == -100 else "bold green")
    console.print(f"{row['source']}: image {row['image']['path'] or 'in memory'}", highlight=False, markup=False)
    console.print(text)
    trained = [token for token in batch["labels"][0].tolist() if token != -100]
    answer, tokens = vlm.processor.tokenizer.decode(trained), batch["labels"].numel()
    console.print(
        f"trained on (green): {answer!r}; {len(trained)} of {tokens} tokens",
        highlight=False,
        markup=False,
    )


def _load(config: TrainConfig, console: Console) -> tuple[TrainConfig, vlm_models.VLM]:
    """The model, and the configuration with the quantization that was chosen."""
    torch.manual_seed(config.seed)
    plan = vlm_models.plan(config.model, config.quantization, config.device, config.dtype, config.revision)
    console.print(str(plan), highlight=False, soft_wrap=True, markup=False)
    vlm = plan.load()
    for note in vlm.notes:
        console.print(note, highlight=False, soft_wrap=True, markup=False)
    return replace(config, quantization=plan.quantization), vlm


def _cache(config: TrainConfig, vlm: vlm_models.VLM) -> vlm_models.FeatureCache | None:
    if config.cache_features == "off":
        return None
    return vlm_models.FeatureCache(vlm, config.cache_dir, round(config.cache_size * 2**30))


def _predictions(data: Data, evaluation: Evaluation) -> list[dict]:
    """One record for each validation row, with its scores by sample."""
    records = []
    for index, (row, prediction) in enumerate(zip(data.val, evaluation.predictions, strict=True)):
        records.append(
            {
                "id": row["id"],
                "image": row["image"]["path"],
                "prompt": row["prompt"],
                "references": row["references"],
                "prediction": prediction,
                "exact_match": evaluation.scores["exact_match"].per_sample[index],
            }
        )
    return records


def _headline(evaluation: Evaluation) -> str:
    name, score = evaluation.headline
    return f"{name.replace('_', ' ')} {report.score_text(score)} on {len(evaluation.predictions):,} rows"


def _facts(before: Evaluation, after: Evaluation, record: dict, results: dict) -> list[tuple[str, str]]:
    """The closing table."""
    trained, total = record["trained"]["parameters"], record["trained"]["of"]
    seconds = results["seconds"]
    scores = [
        (name.replace("_", " "), f"{report.score_text(before.scores[name])} → {report.score_text(score)}")
        for name, score in after.scores.items()
    ]
    return [
        *scores,
        ("validation rows", f"{len(after.predictions):,}, of images not trained on"),
        ("trained parameters", f"{trained:,} of {total:,} ({trained / total:.2%})"),
        ("time", f"{seconds['training']:.0f} s training, {seconds['all']:.0f} s in all"),
        ("peak memory", f"{results['peak_memory_bytes'] / 2**30:.2f} GiB"),
    ]


def _close(console: Console, out: RunDir, facts: list[tuple[str, str]], data: Data) -> None:
    table = Table(show_header=False, title=str(out.folder))
    for name, value in facts:
        table.add_row(name, value)
    console.print(table)
    row = data.val[0]
    command = ["vlm-infer", "--run", str(out.folder), "--image", row["image"]["path"] or "FILE"]
    if row["prompt"]:
        command += ["--question", row["prompt"]]
    console.print(f"Look at {out.folder / 'report.html'}, then try:", highlight=False)
    console.print(f"  uv run {shlex.join(command)}", highlight=False, soft_wrap=True, markup=False)


def _quiet() -> None:
    """Keep the libraries' own progress bars and notes out of ours."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
