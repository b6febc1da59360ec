"""Batches made by hand for the tiny models: random images, of several sizes where the model takes them, and tokens."""

from collections.abc import Callable

import pytest
import torch

from vlm_models import VLM, Batch


@pytest.fixture
def prompts() -> Callable[..., Batch]:
    return _prompts


def _prompts(vlm: VLM, images: list[int], texts: list[list[int]], sizes: list[tuple[int, int]]) -> Batch:
    """Prompts padded on the left. Row r shows image `images[r]`; Qwen2-VL's image i is `sizes[i]` in merged patches."""
    generator = torch.Generator().manual_seed(0)
    count = max(images) + 1
    config = vlm.model.config
    batch = {"image_index": torch.tensor(images)}
    before = [[] for _ in images]
    if vlm.family == "chat":
        vision = config.vision_config
        grids = torch.tensor([[1, *(side * vision.spatial_merge_size for side in size)] for size in sizes[:count]])
        patch = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
        batch["pixel_values"] = torch.randn(int(grids.prod(-1).sum()), patch, generator=generator)
        batch["image_grid_thw"] = grids
        before = [[config.image_token_id] * (sizes[image][0] * sizes[image][1]) for image in images]
    else:
        side = (config.encoder if vlm.family == "encoder_decoder" else config.vision_config).image_size
        batch["pixel_values"] = torch.randn(count, 3, side, side, generator=generator)
        if vlm.family == "blip2":
            before = [[config.image_token_id] * config.num_query_tokens for _ in images]
    rows = [[*ahead, *text] for ahead, text in zip(before, texts, strict=True)]
    width = max(map(len, rows))
    batch["input_ids"] = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    batch["attention_mask"] = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    batch["pixel_values"] = batch["pixel_values"].to(vlm.model.dtype)
    return batch
