"""The collator of a model family."""

from typing import Any

from vlm_data.collators.base import Collator
from vlm_data.collators.blip2 import Blip2Collator
from vlm_data.collators.chat import ChatCollator
from vlm_data.collators.encoder_decoder import EncoderDecoderCollator
from vlm_data.collators.git import GitCollator
from vlm_data.collators.qwen import QwenCollator
from vlm_data.schema import DataError

COLLATORS = {
    "git": GitCollator,
    "blip2": Blip2Collator,
    "chat": ChatCollator,
    "encoder_decoder": EncoderDecoderCollator,
}


def collator(processor: Any, family: str, max_length: int | None = None, padding_side: str = "right") -> Collator:
    """The collator that makes batches for `family` with its transformers `processor`.

    `max_length` is the longest text, prompt and answer and image placeholders together, in tokens.
    """
    if family not in COLLATORS:
        raise DataError(f"unknown model family {family!r}; known: {', '.join(COLLATORS)}")
    kind = COLLATORS[family]
    if kind is ChatCollator and hasattr(processor.image_processor, "merge_size"):
        kind = QwenCollator
    return kind(processor, max_length, padding_side)
