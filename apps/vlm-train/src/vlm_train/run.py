"""One run from configuration to results: read, load, evaluate, train, evaluate, write."""

import shlex
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import datasets
import torch
import transformers
from rich.console import Console
from rich.text import Text

import peft_methods
import vlm_data
import vlm_models
from vlm_runs.progress import Tracker
from vlm_train.adapting.attaching import attach, check_methods, rounding_note
from vlm_train.adapting.prefix_start import start_prefix
from vlm_train.engine.batch_size import fitting_batch_size
from vlm_train.engine.checkpoints import FULL, Checkpoints, why_not_written
from vlm_train.engine.evaluate import check_metric
from vlm_train.engine.fast_paths import describe_step
from vlm_train.engine.loop import planned_steps
from vlm_train.engine.memory import OUTSIDE_A_STEP
from vlm_train.engine.optimizers import make_optimizer
from vlm_train.engine.state import State
from vlm_train.engine.stopping import Interrupted, Signals
from vlm_train.engine.training import Training
from vlm_train.errors import ConfigError, TrainError
from vlm_train.loading import load_model, plan_model
from vlm_train.options.config import AUTO, TrainConfig
from vlm_train.outcome.results import close, headline, write_results
from vlm_train.outcome.step_log import is_logged, line_of, note_of
from vlm_train.outcome.trackers import Trackers, check_trackers
from vlm_train.processes import Processes
from vlm_train.rows.batches import Batches
from vlm_train.rows.data import collator_of, fitting, read_data
from vlm_train.rows.features import Features, encode_once
from vlm_train.rows.streaming import StreamBatches, read_stream
from vlm_train.rundir import RunDir, begun, choose_folder, describe_run, make_folder
from vlm_train.sharding import shard

UserError = (
    ConfigError,
    TrainError,
    vlm_data.DataError,
    vlm_data.ImageError,
    vlm_models.ModelError,
    peft_methods.TargetError,
    peft_methods.AdapterError,
)
WARNING = {"style": "yellow", "highlight": False, "soft_wrap": True}
FEW_STEPS, MANY_STEPS = 20, 100


def run(config: TrainConfig, resume: bool = False) -> Path:
    """Train as configured; returns the folder of the run. Raises one of `UserError`, before anything is written or
    with what was learned kept. With `resume` the run in `config.out` goes on.

    SIGINT and SIGTERM end it by SystemExit 130 and 143, with a checkpoint.
    """
    quiet()
    processes = Processes(cpu=config.device == "cpu")
    console = Console(quiet=not processes.main)
    with Signals() as signals:
        try:
            with vlm_models.out_of_memory_known():
                return _run(config, resume, processes, signals, console)
        except Interrupted as stop:
            raise SystemExit(stop.code) from None
        except OSError as error:
            if error.errno not in FULL:
                raise
            raise TrainError(f"{error.filename or 'the run'}: {why_not_written(error)}") from error
        except torch.OutOfMemoryError as error:
            raise vlm_models.ModelError(OUTSIDE_A_STEP) from error
        except RuntimeError as error:  # torch raises it wherever the run just is
            if "DataLoader worker" not in str(error):
                raise
            raise TrainError(
                "a process that reads the stream has ended: killed, or out of memory, of which a container may share "
                "too little (`docker run --shm-size`); go on by --resume with fewer --workers, 0 for none"
            ) from error


def _run(config: TrainConfig, resume: bool, processes: Processes, signals: Signals, console: Console) -> Path:
    check_methods(config)
    check_trackers(config)
    if AUTO != config.batch_size < processes.count:
        raise ConfigError(f"--batch-size {config.batch_size} is shared by {processes.count} processes; give more rows")
    folder = Path(config.out) if resume else processes.from_main(lambda: choose_folder(config))
    if resume and RunDir(folder).read_json("run.json")["status"] == "done":
        Checkpoints(RunDir(folder).checkpoints, config.keep_checkpoints).remove()  # if it was killed just before that
        done = f"{folder} is done: there is nothing to go on with; look at {folder / 'report.html'}"
        console.print(done, highlight=False, soft_wrap=True)
        return folder
    config, plan = plan_model(config, processes)
    data = (read_stream if config.stream else read_data)(config, console)
    metric = check_metric(config.metric, data.val)
    vlm = load_model(plan, config, processes, console)
    attachment = attach(config, vlm)
    if note := rounding_note(attachment):
        console.print(note, **WARNING)
    if processes.sharded:
        shard(vlm, attachment.parameters(), processes)
    collate = collator_of(config, vlm, data, console)
    cache = _cache(config, vlm)
    data = fitting(data, collate, config)
    if data.rejected:
        count = f"{len(data.rejected)} row{'s' if len(data.rejected) > 1 else ''} rejected"
        console.print(f"{count}, see rejected.jsonl in {folder}", **WARNING)
    if config.batch_size == AUTO:
        size = processes.from_main(lambda: fitting_batch_size(vlm, attachment, collate, data.train, console))
        config = replace(config, batch_size=size * processes.count)
    if config.stream and config.batch_size % processes.count:
        raise ConfigError(f"--batch-size {config.batch_size} must be a multiple of {processes.count}, the processes")
    steps = planned_steps(data.train_rows, config)
    console.print(
        f"{config.model} · {config.method} on {attachment.trainable:,} of {attachment.total:,} parameters · "
        f"{data.train_rows:,} training and {len(data.val):,} validation rows · {_steps(steps)} on {vlm.device}"
        + (f" in {processes.count} processes" if processes.count > 1 else ""),
        highlight=False,
        soft_wrap=True,
    )
    if steps < FEW_STEPS and config.epochs is config.max_steps is None:
        console.print(
            f"{_steps(steps)} will hardly change the model; --epochs {-(-MANY_STEPS // steps)} makes some {MANY_STEPS}",
            **WARNING,
        )
    if config.batch_size * config.accumulate > data.train_rows:
        console.print(
            f"a step of {config.batch_size * config.accumulate} rows shows rows more than once, there being "
            f"{data.train_rows}; use a smaller --batch-size",
            **WARNING,
        )
    trained = {"parameters": attachment.trainable, "of": attachment.total}
    record = describe_run(config, vlm, data.stream or data.train, data.val, trained)
    out = processes.from_main(lambda: begun(folder, record) if resume else make_folder(folder))
    if processes.main:
        out.write_json("run.json", record)
        out.write_lines("rejected.jsonl", [one.as_dict() for one in data.rejected])

    optimizer = make_optimizer(attachment.parameter_groups(config.peak_learning_rate), config)
    attachment.bind(optimizer)
    training = Training(config, vlm, attachment, optimizer, collate, data.val, metric, out, processes, signals, console)
    trackers = Trackers(config if processes.main else replace(config, track=None), folder)
    training.listeners.append(trackers.log)
    try:
        if resume:
            training.resume()
        started = time.perf_counter() - training.state.seconds  # of a run that goes on, the part before counts too
        before = training.before()
        console.print(f"before: {headline(before)}", highlight=False)
        if training.state.step == 0 and (note := start_prefix(attachment, vlm, collate, data.train)):
            console.print(note, highlight=False, soft_wrap=True)
        if data.stream is None:
            batches = Batches(vlm, collate, data.train, None, config, processes)
            batches.features = _features(cache, batches, steps, training.state.step, config, console)
        else:
            console.print("images are encoded every step: their rows are streamed")
            batches = StreamBatches(vlm, collate, data.stream, config, processes)
            if training.data_state is not None:
                batches.restore(training.data_state)
        for line in describe_step(vlm, batches.ready(batches.rows(training.state.step)[0], training.state.step)):
            console.print(line, highlight=False, soft_wrap=True)
        training.go(batches, steps, _after_step(training, steps))
        after = training.finish()
    except (Interrupted, TrainError, vlm_models.ModelError, OSError, torch.OutOfMemoryError) as stop:
        signals.ending = True
        resumable = training.stop()
        done = f"interrupted after step {training.state.step} of {steps}"
        if processes.main:
            _tell_stop(out, record, done, resumable, console, isinstance(stop, OSError))
        raise
    if data.stream is not None:
        # A row comes again in every epoch, to any process.
        rejected = {one.source: one for one in [*data.rejected, *processes.gather(batches.rejected)]}
        data = replace(data, rejected=list(rejected.values()))
    if processes.main:
        out.write_lines("rejected.jsonl", [one.as_dict() for one in data.rejected])
        facts = write_results(training, data, before, after, record, time.perf_counter() - started)
        training.checkpoints.remove()
        trackers.finish()
        close(console, out, facts, data)
    return folder


def _features(
    cache: vlm_models.FeatureCache | None,
    batches: Batches,
    steps: int,
    first: int,
    config: TrainConfig,
    console: Console,
) -> Features | None:
    """The features of all images that the steps from `first` on show, or None where they are not kept."""
    if cache is None or first >= steps:
        return None
    order, rows = batches.order, batches.data
    if (steps - first) * order.size < len(rows):
        rows = rows.select(sorted({row for step in range(first, steps) for row in order.step(step)}))
    # Who stops by the clock cannot know how many images are going to be shown.
    ahead = config.max_minutes is None
    return encode_once(cache, batches.collate, rows, console, ahead, batches.processes, config.worker_count)


def _tell_stop(out: RunDir, record: dict, done: str, resumable: bool, console: Console, full: bool) -> None:
    """Write and say how far a run came that did not end, and how to go on with it."""
    with suppress(OSError):
        out.write_json("run.json", {**record, "status": done})
    kept = f"; the adapter so far is in {out.adapter}" if (out.adapter / "adapter_config.json").exists() else ""
    console.print(f"{done}{kept}", highlight=False, soft_wrap=True)
    if resumable or not full:
        command = shlex.join(["vlm-train", "--resume", str(out.folder)])
        console.print(f"Go on with it:\n  uv run {command}", highlight=False, soft_wrap=True, markup=False)


def _after_step(training: Training, steps: int) -> Callable[[State, Tracker], None]:
    """What to do after each step: show it, and every so often write it down."""

    def after_step(state: State, progress: Tracker) -> None:
        progress.at(state.step, note=note_of(state))
        if is_logged(state.step, steps):
            training.note(line_of(state, training.vlm.device))

    return after_step


def show(config: TrainConfig) -> None:
    """Print one training row as the model sees it, the supervised tokens marked."""
    console = Console()
    quiet()
    config, plan = plan_model(config, Processes())
    data = (read_stream if config.stream else read_data)(config, console)
    vlm = load_model(plan, config, Processes(), console)
    collate = collator_of(config, vlm, data, console)
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


def _cache(config: TrainConfig, vlm: vlm_models.VLM) -> vlm_models.FeatureCache | None:
    if config.cache_features == "off" or config.plain:
        return None
    return vlm_models.FeatureCache(vlm, config.cache_dir, round(config.cache_size * 2**30))


def _steps(steps: int) -> str:
    return f"{steps:,} step{'s' if steps > 1 else ''}"


def quiet() -> None:
    """Keep the libraries' own progress bars and notes out of ours."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
