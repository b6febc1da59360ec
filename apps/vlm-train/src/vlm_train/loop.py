"""The training loop."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from datasets import Dataset

from peft_methods import Attachment
from vlm_data import Collator
from vlm_models import VLM, Batch
from vlm_train.config import TrainConfig
from vlm_train.features import Features, prepared
from vlm_train.memory import too_large

MAX_GRADIENT_NORM = 1.0


@dataclass(frozen=True)
class Step:
    """What one optimizer step did. `loss` is in nats per supervised token."""

    step: int
    loss: float
    learning_rate: float
    rows: int
    seconds: float


def train(
    vlm: VLM,
    attachment: Attachment,
    collate: Collator,
    rows: Dataset,
    features: Features | None,
    config: TrainConfig,
    after_step: Callable[[Step], None],
) -> None:
    """AdamW with linear warm-up and cosine annealing, over all trainable parameters of the attachment.

    A step's loss is summed over its micro-batches and divided by all their supervised tokens, so that accumulating
    changes nothing but memory.
    """
    steps = planned_steps(len(rows), config)
    optimizer = torch.optim.AdamW(attachment.parameter_groups(config.peak_learning_rate), weight_decay=0.0)
    attachment.bind(optimizer)
    peaks = [group["lr"] for group in optimizer.param_groups]
    micro_batches = _micro_batches(rows, config)

    def ready(some: list[dict]) -> Batch:
        return vlm.to_device(collate(some, prepared(features, some)))

    vlm.train()
    for step in range(steps):
        started = time.perf_counter()
        share = schedule(step, steps, config.warmup)
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = share * peak

        parts = [next(micro_batches) for _ in range(config.accumulate)]
        batches = [ready(part) for part in parts]
        tokens = sum(int((batch["labels"] != -100).sum()) for batch in batches)
        attachment.loss_terms(tokens)
        total, exhausted = 0.0, False
        try:
            for batch in batches:
                loss, _ = vlm(batch)
                (loss / tokens).backward()
                total += loss.item()
        except torch.OutOfMemoryError:
            exhausted = True  # told below, where the exception no longer holds on to the step's tensors
        if exhausted:
            optimizer.zero_grad()
            del batches
            raise too_large(vlm, ready, parts[0], config.accumulate, step + 1)
        torch.nn.utils.clip_grad_norm_(attachment.parameters(), MAX_GRADIENT_NORM)
        optimizer.step()
        optimizer.zero_grad()

        seconds = time.perf_counter() - started
        after_step(Step(step + 1, total / tokens, share * config.peak_learning_rate, sum(map(len, parts)), seconds))
    vlm.eval()


def planned_steps(rows: int, config: TrainConfig) -> int:
    """Optimizer steps of the run."""
    steps = max(1, round(config.epochs * rows / (config.batch_size * config.accumulate)))
    return min(steps, config.max_steps) if config.max_steps is not None else steps


def schedule(step: int, steps: int, warmup: float) -> float:
    """Share of the peak learning rate: rises linearly over `warmup` of the steps, then falls along a cosine to zero."""
    rising = round(warmup * steps)
    if step < rising:
        return (step + 1) / rising
    return 0.5 + 0.5 * math.cos(math.pi * (step - rising) / max(1, steps - rising))


def _micro_batches(rows: Dataset, config: TrainConfig) -> Iterator[list[dict]]:
    """Rows in random order, again and again, each epoch in its own order given by the seed."""
    order = torch.Generator().manual_seed(config.seed)
    queue: list[int] = []
    while True:
        while len(queue) < config.batch_size:
            queue += torch.randperm(len(rows), generator=order).tolist()
        chosen, queue = queue[: config.batch_size], queue[config.batch_size :]
        columns = rows[chosen]
        yield [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
