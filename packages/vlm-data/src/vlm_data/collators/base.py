"""A batch is rows of tokens beside the distinct images they show.

    rows  ──▶  input_ids, attention_mask, labels   [rows, length]      labels: -100 but on the answer and its end token
               image_index                         [rows]              which of the images below a row shows
               pixel_values, ...                   [images, ...]       each distinct image once

Rows of one image share its pixels, so the image encoder runs once for all questions about it.
"""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image

from vlm_data.images import decode
from vlm_data.schema import DataError

Row = Mapping[str, Any]
ImageInputs = dict[str, torch.Tensor]  # of one image; `features`, the image encoder's output, may replace the pixels
IGNORE = -100  # the label that cross-entropy skips


class Collator(ABC):
    """Turns rows into batches; a model family says how a row's text is written and what an image becomes."""

    def __init__(self, processor: Any, max_length: int | None = None, padding_side: str = "right"):
        self.processor = processor
        self.tokenizer = processor.tokenizer
        self.max_length = max_length
        self.padding_side = padding_side
        # Padding is masked by length, never by comparing ids, so that any id will do (GPT-2 has none of its own).
        self.pad_id = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else 0

    # ---- what a family decides

    @abstractmethod
    def prompt_ids(self, prompt: str | None, image: ImageInputs) -> list[int]:
        """The tokens before the answer, image placeholders included; `prompt` None asks for a caption."""

    @abstractmethod
    def answer_ids(self, answer: str, prompt: str | None) -> list[int]:
        """The tokens of the answer and the token that ends it."""

    def image_inputs(self, images: Sequence[Image.Image]) -> list[ImageInputs]:
        """What the image encoder needs of each image: by default `pixel_values` [channels, height, width]."""
        pixels = self.processor.image_processor(images=list(images), return_tensors="pt")["pixel_values"]
        return [{"pixel_values": one} for one in pixels]

    def join_images(self, images: Sequence[ImageInputs]) -> ImageInputs:
        """The image inputs of a batch from those of its distinct images."""
        names = [name for name in images[0] if name != "features"]
        return {name: torch.stack([image[name] for image in images]) for name in names}

    # ---- batches

    def __call__(self, rows: Sequence[Row], images: Sequence[ImageInputs] | None = None) -> dict[str, torch.Tensor]:
        """A training batch. `images` are prepared image inputs, one a row, which save decoding `row["image"]`."""
        images, image_index, distinct = self._images(rows, images)
        encoded = [self.encode(row, image) for row, image in zip(rows, images, strict=True)]
        ids = [prompt + answer for prompt, answer in encoded]
        labels = [[IGNORE] * len(prompt) + answer for prompt, answer in encoded]
        batch = self._pad(ids, self.padding_side)
        batch["labels"] = _pad(labels, IGNORE, self.padding_side)
        if "features" in distinct[0]:
            batch["features"] = [image["features"] for image in distinct]
        return {**batch, "image_index": image_index, **self.join_images(distinct)}

    def prompts(self, rows: Sequence[Row]) -> dict[str, torch.Tensor]:
        """A batch to generate from: prompts without answers, padded on the left."""
        images, image_index, distinct = self._images(rows, None)
        ids = [self.prompt_ids(row["prompt"], image) for row, image in zip(rows, images, strict=True)]
        return {**self._pad(ids, "left"), "image_index": image_index, **self.join_images(distinct)}

    def encode(self, row: Row, image: ImageInputs) -> tuple[list[int], list[int]]:
        """Token ids of one row's prompt and of its answer; raises `DataError` if they are too long together."""
        answer = reference_to_train_on(row)
        encoded = self.prompt_ids(row["prompt"], image), self.answer_ids(answer, row["prompt"])
        length = sum(map(len, encoded))
        if self.max_length is not None and length > self.max_length:
            raise DataError(
                f"{row['source']}: {length} tokens, the model takes {self.max_length}; shorten the prompt or the answer"
            )
        return encoded

    def _images(
        self, rows: Sequence[Row], images: Sequence[ImageInputs] | None
    ) -> tuple[list[ImageInputs], torch.Tensor, list[ImageInputs]]:
        """Image inputs row by row, the index of each row's image among the distinct ones, and the distinct ones."""
        keys = [image_identity(row["image"]) for row in rows]
        first = {key: row for row, key in reversed(list(enumerate(keys)))}  # the first row that shows the image
        place = {key: index for index, key in enumerate(dict.fromkeys(keys))}
        if images is None:
            distinct = self.image_inputs([decode(rows[first[key]]["image"]) for key in place])
        else:
            distinct = [images[first[key]] for key in place]
        index = [place[key] for key in keys]
        return [distinct[i] for i in index], torch.tensor(index), distinct

    def _pad(self, ids: list[list[int]], side: str) -> dict[str, torch.Tensor]:
        mask = [[1] * len(row) for row in ids]
        return {"input_ids": _pad(ids, self.pad_id, side), "attention_mask": _pad(mask, 0, side)}


def image_identity(image: Mapping[str, Any]) -> str | bytes:
    """What tells a row's image from another's within one data set: its path, else its bytes."""
    return image["bytes"] if image["bytes"] is not None else image["path"]


def reference_to_train_on(row: Row) -> str:
    """The reference given most often, the first among equals: with ten annotators' answers, the one they agree on."""
    if not row["references"]:
        raise DataError(f"{row['source']}: no answer or caption to train on")
    return Counter(row["references"]).most_common(1)[0][0]


def _pad(rows: list[list[int]], value: int, side: str) -> torch.Tensor:
    width = max(map(len, rows))
    fill = [[value] * (width - len(row)) for row in rows]
    return torch.tensor([gap + row if side == "left" else row + gap for row, gap in zip(rows, fill, strict=True)])
