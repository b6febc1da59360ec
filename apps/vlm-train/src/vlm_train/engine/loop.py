"""The training loop."""

import math
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from vlm_models import VLM, out_of_memory_known
from vlm_train.adapting.attaching import Attached
from vlm_train.engine.memory import told_of_optimizer, too_large
from vlm_train.errors import TrainError
from vlm_train.options.config import TrainConfig
from vlm_train.processes import Processes
from vlm_train.rows.batches import Batches
from vlm_train.rows.streaming import StreamBatches
from vlm_train.schedules import share_of_peak

TOLERATED = 2  # steps in a row without a finite loss


@dataclass(frozen=True)
class Step:
    """What one optimizer step did, in all processes together.

    `loss` is in nats per supervised token, `gradient_norm` that before clipping, `rows` and `tokens` (supervised ones)
    are counts. Of its `seconds`, `data_seconds` went into making batches and `compute_seconds` into the passes forward
    and backward, in this process. `skipped` is 1 if loss or gradient was not finite and nothing was changed, else 0.
    """

    step: int
    loss: float
    learning_rate: float
    gradient_norm: float
    rows: int
    tokens: int
    seconds: float
    data_seconds: float
    compute_seconds: float
    skipped: int


def train(
    vlm: VLM,
    attachment: Attached,
    optimizer: torch.optim.Optimizer,
    batches: Batches | StreamBatches,
    steps: int,
    config: TrainConfig,
    processes: Processes,
    first: int = 0,
    skipped_before: int = 0,
    time_used: Callable[[], float] = lambda: 0.0,
) -> Iterator[Step]:
    """Steps `first` to `steps` - 1 (counted from 0) of the run that `config` describes, one for each `next`.

    A step's loss is summed over its micro-batches and processes and divided by all their supervised tokens, so that
    accumulating and sharing change nothing but memory and time. A step is a function of the trained parameters, the
    optimizer's state, and (seed, step, process), of which follow its rows and all that is random in it.

    Args:
        optimizer: over the attachment's parameters, at peak learning rates, and bound to the attachment.
        skipped_before: how many steps before the first one were skipped without a break.
        time_used: the share that is over of the time the run may take, from 0 to 1. Where it is ahead of the steps, the
            learning rate goes by it, so that it is at its end when the time is. The main process says.

    Raises:
        TrainError: three steps in a row have no finite loss; it names their rows.
        ModelError: out of memory; it says which batch size fits.
    """
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])
    parameters = attachment.parameters()
    in_a_row = skipped_before
    vlm.train()
    for step in range(first, steps):
        started = time.perf_counter()
        seed_all(config.seed, step, processes.rank)
        parts = batches.rows(step)
        ready = [batches.ready(part, step) for part in parts]
        tokens = int(sum((batch["labels"] != -100).sum() for batch in ready))
        used = time_used() if processes.main else 0.0
        tokens, rows, used = processes.sum(tokens, sum(map(len, parts)), used)
        share = share_of_peak(max(step, used * steps), steps, config.warmup, config.schedule)
        for group in optimizer.param_groups:
            group["lr"] = share * group["initial_lr"]
        attachment.loss_terms(tokens)
        computing = time.perf_counter()
        losses, exhausted = [], False
        try:
            for batch in ready:
                with processes.watching(), out_of_memory_known():  # where layers are gathered from all
                    loss, _ = vlm(batch)
                    (loss * (processes.count / tokens)).backward()
                losses.append(loss.detach())
            losses = torch.stack(losses).tolist()  # of all at once: it waits for a GPU
        except torch.OutOfMemoryError:
            exhausted = True  # told below, where the exception no longer holds on to the step's tensors
        if exhausted:
            optimizer.zero_grad()
            ready = batch = loss = None  # a pass that failed on its way back has its whole graph still, by its loss
            raise too_large(vlm, partial(batches.ready, step=step), parts[0], config, processes.count, step + 1)
        computed = time.perf_counter()

        (total,) = processes.sum(sum(losses))
        processes.average_gradients(parameters)
        norm = torch.nn.utils.clip_grad_norm_(parameters, config.max_gradient_norm or math.inf).item()
        skipped = not (math.isfinite(total) and math.isfinite(norm))
        if not skipped:
            with told_of_optimizer(vlm, step + 1):
                optimizer.step()
        optimizer.zero_grad()
        in_a_row = in_a_row + 1 if skipped else 0
        if in_a_row > TOLERATED:
            raise _not_finite(parts, losses, step + 1, processes)

        now = time.perf_counter()
        times = now - started, computing - started, computed - computing
        learning_rate = share * config.peak_learning_rate
        yield Step(step + 1, total / tokens, learning_rate, norm, int(rows), int(tokens), *times, int(skipped))
    vlm.eval()


def planned_steps(rows: int, config: TrainConfig) -> int:
    """Optimizer steps of the run."""
    if config.epochs is None and config.max_steps is not None:
        return config.max_steps
    steps = max(1, round((config.epochs or 1) * rows / (config.batch_size * config.accumulate)))
    return steps if config.max_steps is None else min(steps, config.max_steps)


def seed_all(seed: int, step: int, process: int) -> None:
    """Let what is random in a step follow from these numbers, so that there is no state of it to keep."""
    derived = random.Random(f"{seed}/{step}/{process}").getrandbits(32)
    random.seed(derived)
    np.random.seed(derived)
    torch.manual_seed(derived)  # of every device


def _not_finite(parts: list[list[dict]], losses: list[float], step: int, processes: Processes) -> TrainError:
    bad = [part for part, loss in zip(parts, losses, strict=True) if not math.isfinite(loss)]
    sources = processes.gather([row["source"] for part in bad or parts for row in part])
    named = "; ".join(sources[:8]) + (f"; and {len(sources) - 8} more" if len(sources) > 8 else "")
    return TrainError(
        f"the loss is not finite in {TOLERATED + 1} steps in a row, the last being step {step} on the rows {named}; "
        "lower --learning-rate, or use --dtype float32"
    )
