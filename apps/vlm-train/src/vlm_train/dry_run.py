"""`--dry-run`: what a run would do, and what two of its steps tell about its time and memory; it writes nothing."""

import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from itertools import islice

from datasets import Dataset
from rich.console import Console

import vlm_models
from vlm_data import Collator
from vlm_models import VLM
from vlm_train.adapting.attaching import Attached, attach, check_methods
from vlm_train.engine.batch_size import fitting_batch_size
from vlm_train.engine.evaluate import check_metric, evaluate
from vlm_train.engine.fast_paths import describe_step
from vlm_train.engine.loop import planned_steps, train
from vlm_train.engine.memory import peak_memory
from vlm_train.engine.optimizers import make_optimizer
from vlm_train.errors import ConfigError
from vlm_train.loading import load_model, plan_model
from vlm_train.options.config import AUTO, TrainConfig
from vlm_train.processes import Processes
from vlm_train.rows.batches import Batches
from vlm_train.rows.data import Data, collator_of, fitting, read_data
from vlm_train.rows.features import Features
from vlm_train.rows.images import DistinctImages
from vlm_train.rows.streaming import StreamBatches, read_stream
from vlm_train.run import quiet

SAMPLE = 64  # images whose tokens are counted
ANSWERED = 32  # validation rows that the time of an evaluation is measured on
BARS = 8
STEPS = 2


def dry_run(config: TrainConfig) -> None:
    """Print the plan of a run after training two steps of it."""
    console = Console()
    quiet()
    processes = Processes()
    if processes.sharded:
        raise ConfigError(f"--dry-run: what sharding takes is not predicted; leave out {processes.launch.asked}")
    check_methods(config)
    config, plan = plan_model(config, processes)
    data = (read_stream if config.stream else read_data)(config, console)
    check_metric(config.metric, data.val)
    vlm = load_model(plan, config, processes, console)
    attached = attach(config, vlm)
    collate = collator_of(config, vlm, data, console)
    data = fitting(data, collate, config)
    if config.batch_size == AUTO:
        config = replace(config, batch_size=fitting_batch_size(vlm, attached, collate, data.train, console))
    steps, of_train = planned_steps(data.train_rows, config), data.train_rows
    images = len(DistinctImages(data.train))
    rows = f"{of_train:,} training rows of {images:,} images" if data.stream is None else f"{of_train:,} rows to stream"
    _say(console, f"{rows}, {len(data.val):,} validation rows")
    _say(
        console,
        f"{steps:,} steps of {config.batch_size} x {config.accumulate} rows: "
        f"{steps * config.batch_size * config.accumulate / of_train:.2f} epochs",
    )
    for line in token_histogram(vlm, collate, data.train):
        _say(console, line)
    evaluating = _seconds_to_evaluate(vlm, collate, data.val)
    with tempfile.TemporaryDirectory() as folder:
        for_image, for_step = _two_steps(config, vlm, attached, collate, data, folder, console)
    shown = min(images, round(images * min(1.0, steps * config.batch_size * config.accumulate / of_train)))
    evaluations = 2 + ((steps - 1) // config.evaluate_every if config.evaluate_every else 0)
    parts = {
        f"{shown:,} images encoded once": shown * for_image,
        f"{steps:,} steps": steps * for_step,
        f"{evaluations} evaluations": evaluations * evaluating,
    }
    if not for_image:
        del parts[f"{shown:,} images encoded once"]
    for name, seconds in parts.items():
        _say(console, f"predicted: {name}: {_duration(seconds)}")
    total = sum(parts.values())
    limit = f", of which --max-minutes allows {config.max_minutes:g} min of steps" if config.max_minutes else ""
    _say(console, f"predicted time: {_duration(total)}{limit}")
    _say(console, f"predicted memory: {peak_memory(vlm.device) / 2**30:.2f} GiB, the peak of these two steps")
    _say(console, "Nothing was written. The same command without --dry-run trains.")


def token_histogram(vlm: VLM, collate: Collator, rows: Dataset) -> list[str]:
    """How many tokens images and texts have, of a sample of the rows, as lines of text."""
    sample = rows.shuffle(seed=0).select(range(min(SAMPLE, len(rows)))).to_list()
    images, texts = [], []
    for row in sample:
        batch = vlm.to_device(collate([row]))
        found = [len(features) for features in vlm.encode_images(batch)]
        images += found
        in_text = sum(len(collate.image_ids(collate.outline(image))) for image in collate.shown([row]))
        texts.append(int(batch["attention_mask"].sum()) - in_text)
    return [*_histogram("tokens an image", images), *_histogram("tokens of text a row", texts)]


def _histogram(name: str, values: Sequence[int]) -> list[str]:
    low, high = min(values), max(values)
    lines = [f"{name}, of {len(values)} sampled: {low} to {high}, mean {sum(values) / len(values):.0f}"]
    if low == high:
        return lines
    width = max(1, -(-(high - low + 1) // BARS))
    counts = [0] * -(-(high - low + 1) // width)
    for value in values:
        counts[(value - low) // width] += 1
    for index, count in enumerate(counts):
        first = low + index * width
        last = min(high, first + width - 1)
        bar = "█" * round(40 * count / max(counts))
        lines.append(f"  {first if first == last else f'{first} to {last}':>14} {bar} {count}")
    return lines


def _two_steps(
    config: TrainConfig, vlm: VLM, attached: Attached, collate: Collator, data: Data, folder: str, console: Console
) -> tuple[float, float]:
    """Seconds to encode an image ahead (0 if it is not done ahead), and of a step."""
    cache = None
    if data.stream is not None:
        _say(console, "images are encoded every step: their rows are streamed")
    elif config.cache_features == "on" and not config.plain:
        cache = vlm_models.FeatureCache(vlm, folder)
        if cache.off:
            _say(console, cache.off)
            cache = None
    features = Features(cache, collate, config.worker_count) if cache else None
    processes = Processes()
    if data.stream is None:
        batches = Batches(vlm, collate, data.train, features, config, processes)
    else:
        batches = StreamBatches(vlm, collate, data.stream, config, processes)
    for_image = 0.0
    if features is not None:
        first = [image for step in range(STEPS) for part in batches.rows(step) for image in collate.shown(part)]
        started = time.perf_counter()
        for_image = 1 / max(1, features.fill(first)) * (time.perf_counter() - started)
        size = cache.predicted_bytes(features.of(first), len(DistinctImages(data.train)))
        if size > config.cache_size * 2**30:
            _say(console, f"images are encoded every step: --cache-size does not hold their {size / 2**30:.3g} GiB")
            batches.features, for_image = None, 0.0
    for line in describe_step(vlm, batches.ready(batches.rows(0)[0], 0)):
        _say(console, line)
    optimizer = make_optimizer(attached.parameter_groups(config.peak_learning_rate), config)
    attached.bind(optimizer)
    with closing(batches):
        done = list(islice(train(vlm, attached, optimizer, batches, STEPS, config, processes), STEPS))
    _say(console, "losses of two steps: " + ", ".join(f"{step.loss:.3f}" for step in done))
    return for_image, done[-1].seconds


def _seconds_to_evaluate(vlm: VLM, collate: Collator, rows: Dataset) -> float:
    few = rows.select(range(min(ANSWERED, len(rows))))
    started = time.perf_counter()
    evaluate(vlm, collate, few, Console(quiet=True), "")
    return (time.perf_counter() - started) / len(few) * len(rows)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _say(console: Console, text: str) -> None:
    console.print(text, highlight=False, soft_wrap=True, markup=False)
