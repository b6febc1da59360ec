"""Memory: the peak of this process, and what to do when it does not suffice."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import psutil
import torch

from vlm_models import VLM, Batch, ModelError, out_of_memory_known
from vlm_train.options.config import TrainConfig
from vlm_train.sharding import is_sharded

# Elsewhere than in a step, of which `too_large` and `told_of_optimizer` know more.
OUTSIDE_A_STEP = (
    "out of memory outside of training's steps, as images were encoded or the method was set up; use --quantization "
    "nf4, a smaller --max-image-tokens or a smaller model"
)


def peak_memory(device: torch.device) -> int:
    """Bytes held at most: of the accelerator if the model is on CUDA, else of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def too_large(
    vlm: VLM,
    collate: Callable[[Sequence[dict]], Batch],
    rows: Sequence[dict],
    config: TrainConfig,
    processes: int,
    step: int,
) -> ModelError:
    """The error for a batch that did not fit into one of the processes; how many of its rows do is found by trying."""
    size = len(rows)
    message = f"out of memory on {vlm.device} in step {step} with {size} rows in a forward pass; "
    if is_sharded(vlm):
        return ModelError(f"{message}use a lower --batch-size and a higher --accumulate")  # one alone cannot try
    while size > 1:
        size //= 2
        if fits(vlm, collate(rows[:size])):
            fitting = size * processes
            passes = -(-config.batch_size * config.accumulate // fitting)
            return ModelError(f"{message}{size} fit: use --batch-size {fitting} --accumulate {passes}")
    return ModelError(
        f"{message}one alone does not fit: use --gradient-checkpointing, --quantization nf4, or a smaller model"
    )


@contextmanager
def told_of_optimizer(vlm: VLM, step: int) -> Iterator[None]:
    """Inside, where the optimizer steps, a ModelError says what takes less memory: its first step makes the moments."""
    try:
        with out_of_memory_known():
            yield
    except torch.OutOfMemoryError:
        raise ModelError(
            f"out of memory on {vlm.device} in the optimizer, in step {step}; train fewer parameters (a lower --rank, "
            "--method lora), or use --optimizer adamw8bit or sgd"
        ) from None


def fits(vlm: VLM, batch: Batch) -> bool:
    try:
        with out_of_memory_known():
            vlm(batch)[0].backward()
        return True
    except torch.OutOfMemoryError:
        return False
    finally:
        vlm.zero_grad()
