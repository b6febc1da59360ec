"""Chat models: the row is written with the processor's own chat template and the answer is the assistant's turn.

The template holds one placeholder for the image; it is written out once for every token that the image becomes, which
for Qwen2-VL is its grid of patches [time, height, width] divided by the patches merged into a token.
"""

from collections.abc import Sequence
from functools import lru_cache

import torch
from PIL import Image

from vlm_data.collators.base import Collator, ImageInputs
from vlm_data.schema import DataError

CAPTION_PROMPT = "Describe the image."


class ChatCollator(Collator):
    """Collates for Qwen2-VL. Batches carry `mm_token_type_ids` and `image_grid_thw`, which its positions depend on."""

    def __init__(self, processor, max_length: int | None = None, padding_side: str = "right"):
        super().__init__(processor, max_length, padding_side)
        self.image_id = self.tokenizer.convert_tokens_to_ids(processor.image_token)
        # Rendering a template takes longer than the rest of collation; questions repeat, within and between epochs.
        self._prompt_parts = lru_cache(maxsize=65536)(self._prompt_parts)
        self.answer_ids = lru_cache(maxsize=65536)(self.answer_ids)

    def image_inputs(self, images: Sequence[Image.Image]) -> list[ImageInputs]:
        inputs = self.processor.image_processor(images=list(images), return_tensors="pt")
        patches = inputs["image_grid_thw"].prod(-1).tolist()
        pixels = inputs["pixel_values"].split(patches)
        return [
            {"pixel_values": one, "image_grid_thw": grid}
            for one, grid in zip(pixels, inputs["image_grid_thw"], strict=True)
        ]

    def join_images(self, images: Sequence[ImageInputs]) -> ImageInputs:
        joined = {"image_grid_thw": torch.stack([image["image_grid_thw"] for image in images])}
        if "pixel_values" in images[0]:
            joined["pixel_values"] = torch.cat([image["pixel_values"] for image in images])  # patches of all, in turn
        return joined

    def prompt_ids(self, prompt: str | None, image: ImageInputs) -> list[int]:
        before, after = self._prompt_parts(prompt)
        tokens = int(image["image_grid_thw"].prod()) // self.processor.image_processor.merge_size**2
        return [*before, *[self.image_id] * tokens, *after]

    def answer_ids(self, answer: str, prompt: str | None) -> list[int]:
        asked = [_user(prompt or CAPTION_PROMPT)]
        told = [*asked, {"role": "assistant", "content": [{"type": "text", "text": answer}]}]
        before = self.processor.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
        whole = self.processor.apply_chat_template(told, tokenize=False)
        if not whole.startswith(before):
            raise DataError(
                "the chat template writes the question differently once it is answered; cannot mask the prompt"
            )
        ids = self.tokenizer(whole[len(before) :], add_special_tokens=False).input_ids
        end = self.tokenizer.eos_token_id
        return ids[: len(ids) - ids[::-1].index(end)] if end in ids else [*ids, end]

    def _pad(self, ids: list[list[int]], side: str) -> dict[str, torch.Tensor]:
        batch = super()._pad(ids, side)
        return {**batch, "mm_token_type_ids": (batch["input_ids"] == self.image_id).long()}

    def _prompt_parts(self, prompt: str | None) -> tuple[list[int], list[int]]:
        """Token ids of the rendered conversation before and after its image."""
        text = self.processor.apply_chat_template(
            [_user(prompt or CAPTION_PROMPT)], add_generation_prompt=True, tokenize=False
        )
        if text.count(self.processor.image_token) != 1:
            raise DataError(
                f"the prompt {prompt!r} holds the image placeholder {self.processor.image_token}; remove it"
            )
        before, after = text.split(self.processor.image_token)
        return tuple(self.tokenizer(part, add_special_tokens=False).input_ids for part in (before, after))


def _user(prompt: str) -> dict:
    return {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompt}]}
