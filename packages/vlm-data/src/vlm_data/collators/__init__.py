"""Rows to batches of tensors, one collator for each model family."""

from vlm_data.collators.base import Collator, ImageInputs, image_identity, images_of
from vlm_data.collators.choose import collator

__all__ = ["Collator", "ImageInputs", "collator", "image_identity", "images_of"]
