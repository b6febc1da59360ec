"""`--batch-size auto`: how many rows of a forward pass fit into memory, as a power of two."""

from collections.abc import Callable, Sequence

import psutil
import torch
from datasets import Dataset
from rich.console import Console

from vlm_data import Collator
from vlm_models import VLM, Batch
from vlm_train.adapting.attaching import Attached
from vlm_train.engine.memory import fits

LARGEST = 256  # larger ones make few steps of many rows, from which is learned less
SAMPLE = 256  # rows among which the longest are looked for
USED = 0.8  # of the memory that is free on a CPU, which other programs use too
# By how many times what a pass keeps for the backward pass a CPU process grows: what layers need besides, and
# what the allocator does not give back. Measured on tiny-git and tiny-qwen2-vl at 256 rows: 3.3 to 4.0.
HIGH_WATER = 4
ADAMW = 12  # bytes of a trained parameter: its gradient and the optimizer's two moments


def fitting_batch_size(vlm: VLM, attached: Attached, collate: Collator, rows: Dataset, console: Console) -> int:
    """Rows of one process that fit: on CUDA found by trying, elsewhere by what a few rows keep for the backward pass.

    It is judged by the longest rows of a sample.
    """
    widest = widest_rows(collate, rows)
    limit = min(LARGEST, len(widest))
    sizes = [2**power for power in range(limit.bit_length()) if 2**power <= limit]

    def ready(some: Sequence[dict]) -> Batch:
        return vlm.to_device(collate(some))

    vlm.train()
    if vlm.device.type == "cuda":
        size, reason = _tried(vlm, attached, ready, widest, sizes), f"the largest that fits on {vlm.device}"
    else:
        free = USED * psutil.virtual_memory().available - ADAMW * attached.trainable
        size, needed = _predicted(vlm, ready, widest, sizes, free)
        reason = f"needs {needed / 2**30:.2g} of {free / 2**30:.1f} GiB"
    vlm.eval()
    if size == LARGEST:
        reason += ", and more rows at once would only make fewer steps"
    console.print(f"batch size {size}: {reason}", highlight=False, soft_wrap=True)
    return size


def widest_rows(collate: Collator, rows: Dataset) -> list[dict]:
    """Rows of a sample, those of the most tokens first."""
    sample = rows.shuffle(seed=0).select(range(min(SAMPLE, len(rows)))).to_list()
    return sorted(sample, key=lambda row: -collate([row])["input_ids"].numel())


def kept_bytes(vlm: VLM, batch: Batch) -> int:
    """Bytes that a forward pass keeps for the backward pass, the parameters not counted."""
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss, _ = vlm(batch)
    for parameter in vlm.parameters():
        kept.pop(parameter.untyped_storage().data_ptr(), None)
    del loss
    return sum(kept.values())


def _predicted(
    vlm: VLM, ready: Callable[[Sequence[dict]], Batch], rows: list[dict], sizes: list[int], free: float
) -> tuple[int, float]:
    """The largest of the sizes whose pass needs no more than `free` bytes, and what it needs: a line through two."""
    few = min(4, len(rows))
    one, some = kept_bytes(vlm, ready(rows[:1])), kept_bytes(vlm, ready(rows[:few]))
    for_each = (some - one) / (few - 1) if few > 1 else one
    needed = {size: HIGH_WATER * (one + (size - 1) * for_each) for size in sizes}
    size = max((size for size in sizes if needed[size] <= free), default=1)
    return size, needed[size]


def _tried(
    vlm: VLM, attached: Attached, ready: Callable[[Sequence[dict]], Batch], rows: list[dict], sizes: list[int]
) -> int:
    found = 1
    try:  # what the optimizer will take
        held = torch.empty(ADAMW * attached.trainable, dtype=torch.uint8, device=vlm.device)
    except torch.OutOfMemoryError:
        return found  # training tells what to do, where one row does not fit either
    for size in sizes:
        if not fits(vlm, ready(rows[:size])):
            break
        found = size
    del held
    return found
