"""What makes training fast, switched and told: packed rows, and the head at supervised positions alone.

The feature cache, the third of them, tells its own line (`features.py`).
"""

import torch

from vlm_models import VLM, Batch


@torch.no_grad()
def describe_step(vlm: VLM, batch: Batch) -> list[str]:
    """One line each on what is left out of the work for a batch like this one."""
    labels = batch["labels"]
    rows, positions = labels.shape[0], labels.numel()
    supervised = int((labels[:, 1:] != -100).sum())
    if vlm.plain:
        return [f"plain: all {rows} rows of a pass in full, and the head at all of its {positions:,} positions"]
    features = batch["features"] if "features" in batch else vlm.encode_images(batch)
    packing = vlm.packing(features, batch)
    if packing is None:
        packed = "rows are not packed: here it would spare nothing"
    else:
        wide, images = packing.tokens, len(packing.image_index)
        packed = f"rows packed: {rows} of a pass behind {images} images, {wide.numel():,} positions for {positions:,}"
        packed += f", {packing.padding:.0%} of them padding"
    return [
        packed,
        f"head at the supervised positions alone: {supervised:,} of {positions:,} ({supervised / positions:.1%})",
    ]
