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


def collator(
    processor: Any,
    family: str,
    max_length: int | None = None,
    padding_side: str = "right",
    *,
    answer_choice: str = "frequent",
    seed: int = 0,
) -> Collator:
    """The collator that makes batches for `family` with its transformers `processor`.

    max_length: of a row, prompt and answer and image placeholders together, in tokens.
    answer_choice: of several reference answers "frequent" trains on the one given most often; "sample" draws one by its
        frequency, from the seed, the row's id and the epoch that the batch is asked for.
    """
    if family not in COLLATORS:
        raise DataError(f"unknown model family {family!r}; known: {', '.join(COLLATORS)}")
    kind = COLLATORS[family]
    if kind is ChatCollator and hasattr(processor.image_processor, "merge_size"):
        kind = QwenCollator
    return kind(processor, max_length, padding_side, answer_choice, seed)
