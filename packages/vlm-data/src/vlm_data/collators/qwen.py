"""Qwen's chat models: images of any size, as rows of patches without tiles."""

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image

from vlm_data.collators.base import ImageInputs
from vlm_data.collators.chat import ChatCollator


class QwenCollator(ChatCollator):
    """Collates for Qwen2-VL, Qwen2.5-VL and Qwen3-VL. Batches carry `image_grid_thw`, which positions depend on."""

    def __init__(self, processor: Any, *args: Any, **options: Any):
        super().__init__(processor, *args, **options)
        self.image_id = self.tokenizer.convert_tokens_to_ids(processor.image_token)

    def image_inputs(self, images: Sequence[Image.Image]) -> list[ImageInputs]:
        """Of each image its patches [patches, values] and its grid of patches [time, height, width]."""
        inputs = self.processor.image_processor(images=list(images), return_tensors="pt")
        grids = inputs["image_grid_thw"]
        patches = inputs["pixel_values"].split(grids.prod(-1).tolist())
        return [{"pixel_values": one, "image_grid_thw": grid} for one, grid in zip(patches, grids, strict=True)]

    def join_images(self, images: Sequence[ImageInputs]) -> ImageInputs:
        joined = {"image_grid_thw": torch.stack([image["image_grid_thw"] for image in images])}
        if "pixel_values" in images[0]:
            joined["pixel_values"] = torch.cat([image["pixel_values"] for image in images])  # patches of all, in turn
        return joined

    def image_ids(self, image: ImageInputs) -> list[int]:
        """A placeholder for every token, into which `merge_size` x `merge_size` patches are merged."""
        tokens = int(image["image_grid_thw"].prod()) // self.processor.image_processor.merge_size**2
        return [self.image_id] * tokens

    def _sized(self, size: tuple[int, int]) -> ImageInputs:
        width, height = size
        patches = self.processor.image_processor.get_number_of_image_patches(height, width, {})
        return {"image_grid_thw": torch.tensor([1, 1, patches])}  # the tokens depend on the product alone
