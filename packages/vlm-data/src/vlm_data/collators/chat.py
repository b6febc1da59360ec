"""Chat models: the row is written with the processor's own chat template and the answer is the assistant's turn.

The template holds one placeholder for the image. What the processor writes in its place (one for each token that the
image becomes, marks between its tiles) goes with the image as `placeholders`: questions about one image share it.
"""

from collections.abc import Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from vlm_data.collators.base import Collator, ImageInputs
from vlm_data.schema import DataError

CAPTION_PROMPT = "Describe the image."
TILES = ("pixel_values", "pixel_attention_mask")  # an image's tiles, and which of their pixels are real
# Image encoders that take one of these want as many tiles of every image; others all images' tiles in a row.
PADDED = ("pixel_attention_mask", "image_sizes")


class ChatCollator(Collator):
    """Collates for processors with a chat template: SmolVLM, Idefics3, LLaVA-OneVision, Gemma 3, InternVL."""

    def __init__(self, processor, max_length: int | None = None, padding_side: str = "right"):
        super().__init__(processor, max_length, padding_side)
        added = getattr(self.tokenizer, "get_added_vocab", dict)()
        self._marks = {*added.values(), self.tokenizer.eos_token_id}  # tokens that text on either side never joins
        # Rendering a template takes longer than the rest of collation; questions repeat, within and between epochs.
        self._prompt_parts = lru_cache(maxsize=65536)(self._prompt_parts)
        self.answer_ids = lru_cache(maxsize=65536)(self.answer_ids)

    def image_inputs(self, images: Sequence[Image.Image]) -> list[ImageInputs]:
        """Of each image its tiles [tiles, channels, height, width] and its `placeholders` [tokens]."""
        return [self._image_input(image) for image in images]

    def join_images(self, images: Sequence[ImageInputs]) -> ImageInputs:
        of_all = {name: [image[name] for image in images] for name in images[0] if name != "features"}
        joined: ImageInputs = {"placeholders": of_all["placeholders"]}
        if "image_sizes" in of_all:
            joined["image_sizes"] = torch.stack(of_all["image_sizes"])
        padded = any(name in of_all for name in PADDED)
        for name in TILES:
            if name in of_all:
                joined[name] = _stack_padded(of_all[name]) if padded else torch.cat(of_all[name])
        if "pixel_values" in of_all and not padded:
            joined["image_tiles"] = torch.tensor([len(tiles) for tiles in of_all["pixel_values"]])
        return joined

    def prompt_ids(self, prompt: str | None, image: ImageInputs) -> list[int]:
        ids = self.image_ids(image)
        marks = [place for place, token in enumerate(ids) if token in self._marks] or [0, len(ids) - 1]
        start, end = marks[0], marks[-1] + 1
        # Text at its ends (Gemma's line breaks) is tokenized with what stands around.
        before, after = self._prompt_parts(prompt, tuple(ids[:start]), tuple(ids[end:]))
        return [*before, *ids[start:end], *after]

    def image_ids(self, image: ImageInputs) -> list[int]:
        """The tokens that stand for an image."""
        return image["placeholders"].tolist()

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
        ends = [place for place, token in enumerate(ids) if token in self._marks]
        return ids[: ends[-1] + 1] if ends else [*ids, self.tokenizer.eos_token_id]

    def _image_input(self, image: Image.Image) -> ImageInputs:
        token = self.processor.image_token
        inputs = self.processor(text=[token], images=[image], add_special_tokens=False, return_tensors="pt")
        padded = any(name in inputs for name in PADDED)  # then there is an axis of images before that of tiles
        taken = {name: inputs[name] for name in {*TILES, *PADDED} if name in inputs}
        of_image = {name: value[0] if padded else value for name, value in taken.items()}
        return {"placeholders": inputs["input_ids"][0], **of_image}

    def _prompt_parts(
        self, prompt: str | None, first: tuple[int, ...], last: tuple[int, ...]
    ) -> tuple[list[int], list[int]]:
        """Token ids of the rendered conversation before and after its image, with what the image begins and ends."""
        token = self.processor.image_token
        text = self.processor.apply_chat_template(
            [_user(prompt or CAPTION_PROMPT)], add_generation_prompt=True, tokenize=False
        )
        if text.count(token) != 1:
            raise DataError(f"the prompt {prompt!r} holds the image placeholder {token}; remove it")
        before, after = text.split(token)
        if first or last:
            before, after = before + self.tokenizer.decode(first), self.tokenizer.decode(last) + after
        return tuple(self.tokenizer(part, add_special_tokens=False).input_ids for part in (before, after))


def _stack_padded(tensors: Sequence[Tensor]) -> Tensor:
    """Stacked, each padded at the end of every axis with zeros (images) or False (masks)."""
    sizes = [max(sizes) for sizes in zip(*(tensor.shape for tensor in tensors), strict=True)]
    gaps = [
        [gap for size, has in zip(reversed(sizes), reversed(tensor.shape), strict=True) for gap in (0, size - has)]
        for tensor in tensors
    ]
    return torch.stack([F.pad(tensor, gap) for tensor, gap in zip(tensors, gaps, strict=True)])


def _user(prompt: str) -> dict:
    return {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompt}]}
