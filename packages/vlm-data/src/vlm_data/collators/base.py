"""A batch is rows of tokens beside the distinct images they show.

    rows  ──▶  input_ids, attention_mask, labels   [rows, length]      labels: -100 but on answers and their end tokens
               image_index                         [images shown]      which of the images below, row by row
               pixel_values, ...                   [images, ...]       each distinct image once
               padding                                                 share of input_ids that is padding, to train on

Rows of one image share its pixels, so the image encoder runs once for all questions about it. `image_index` has one
entry a row, but for rows of several images: it has one for each of them then, and no image is shared in that batch.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from vlm_data.collators.answers import CHOICES, answer_of
from vlm_data.images import decode
from vlm_data.schema import DataError

Row = Mapping[str, Any]
ImageInputs = dict[str, torch.Tensor]  # of one image; `features`, the image encoder's output, may replace the pixels
IGNORE = -100  # the label that cross-entropy skips


@dataclass(frozen=True)
class Span:
    """Tokens that follow each other in a row; of those that are trained on, the ids are the labels."""

    ids: Sequence[int]
    trained: bool = False


class Collator(ABC):
    """Turns rows into batches; a model family says how a row's text is written and what an image becomes.

    max_length: the longest row in tokens. answer_choice: see `answers.py`; seed: of the answers drawn.
    """

    def __init__(
        self,
        processor: Any,
        max_length: int | None = None,
        padding_side: str = "right",
        answer_choice: str = "frequent",
        seed: int = 0,
    ):
        if answer_choice not in CHOICES:
            raise DataError(f"unknown answer_choice {answer_choice!r}; known: {', '.join(CHOICES)}")
        self.processor = processor
        self.tokenizer = processor.tokenizer
        self.max_length = max_length
        self.padding_side = padding_side
        self.answer_choice, self.seed = answer_choice, seed
        # Padding is masked by length, never by comparing ids, so that any id will do (GPT-2 has none of its own).
        self.pad_id = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else 0

    # ---- what a family decides

    @abstractmethod
    def spans(self, row: Row, images: Sequence[ImageInputs], answer: str | None) -> list[Span]:
        """A row's tokens, image placeholders included; without an answer, those to generate one from.

        Raises DataError for a row that the family cannot show.
        """

    def image_ids(self, image: ImageInputs) -> list[int]:
        """The tokens that stand for an image; none where the model puts it beside the text itself."""
        return []

    def outline(self, image: Mapping[str, Any]) -> ImageInputs:
        """Of a row's image what `image_ids` has to know, without decoding it."""
        return {}

    def image_inputs(self, images: Sequence[Image.Image]) -> list[ImageInputs]:
        """What the image encoder needs of each image: by default `pixel_values` [channels, height, width]."""
        pixels = self.processor.image_processor(images=list(images), return_tensors="pt")["pixel_values"]
        return [{"pixel_values": one} for one in pixels]

    def join_images(self, images: Sequence[ImageInputs]) -> ImageInputs:
        """The image inputs of a batch from those of its distinct images."""
        names = [name for name in images[0] if name != "features"]
        return {name: torch.stack([image[name] for image in images]) for name in names}

    # ---- batches

    def __call__(
        self, rows: Sequence[Row], images: Sequence[ImageInputs] | None = None, epoch: int = 0
    ) -> dict[str, Any]:
        """A training batch. `images`: prepared inputs, one for each of `shown(rows)`, which save decoding them."""
        own, image_index, distinct = self._images(rows, images)
        encoded = [self.encode(row, inputs, epoch) for row, inputs in zip(rows, own, strict=True)]
        batch = self._pad([ids for ids, _ in encoded], self.padding_side)
        batch["padding"] = 1 - batch["attention_mask"].sum().item() / batch["attention_mask"].numel()
        batch["labels"] = _pad([labels for _, labels in encoded], IGNORE, self.padding_side)
        if "features" in distinct[0]:
            batch["features"] = [image["features"] for image in distinct]
        return {**batch, "image_index": image_index, **self.join_images(distinct)}

    def prompts(self, rows: Sequence[Row]) -> dict[str, Any]:
        """A batch to generate from: prompts without answers, padded on the left."""
        own, image_index, distinct = self._images(rows, None)
        spans = [self.spans(row, inputs, None) for row, inputs in zip(rows, own, strict=True)]
        ids = [[token for span in of_row for token in span.ids] for of_row in spans]
        return {**self._pad(ids, "left"), "image_index": image_index, **self.join_images(distinct)}

    def encode(self, row: Row, images: Sequence[ImageInputs], epoch: int = 0) -> tuple[list[int], list[int]]:
        """(token ids, labels) of one row. Raises `DataError` if it is too long, or has nothing to train on."""
        return self._encode(row, images, answer_of(row, self.answer_choice, self.seed, epoch))

    def longest(self, row: Row, images: Sequence[ImageInputs]) -> int:
        """Tokens of the row with the longest of the answers that may be drawn. Raises as `encode` does."""
        answers = row["references"] if self.answer_choice == "sample" else ()
        answers = dict.fromkeys([*answers, answer_of(row, self.answer_choice, self.seed, 0)])
        return max(len(self._encode(row, images, answer)[0]) for answer in answers)

    def shown(self, rows: Sequence[Row]) -> list[Mapping[str, Any]]:
        """The images of the rows, one after the other."""
        return [image for row in rows for image in images_of(row)]

    def _encode(self, row: Row, images: Sequence[ImageInputs], answer: str) -> tuple[list[int], list[int]]:
        spans = self.spans(row, images, answer)
        trained = [span for span in spans if span.trained]
        if not trained:
            raise DataError(f"{row['source']}: no turn of it is to be trained on")
        if any(len(span.ids) < 2 for span in trained):  # the end token alone
            raise DataError(f"{row['source']}: its answer has no tokens; the tokenizer knows none of its letters")
        ids = [token for span in spans for token in span.ids]
        if self.max_length is not None and len(ids) > self.max_length:
            pictured = sum(len(self.image_ids(image)) for image in images)
            of_images = f" ({pictured} of them of images)" if pictured else ""
            raise DataError(
                f"{row['source']}: {len(ids)} tokens{of_images}, the model takes {self.max_length}; shorten the prompt "
                "or the answer" + (", or show smaller images" if pictured else "")
            )
        return ids, [token if span.trained else IGNORE for span in spans for token in span.ids]

    def _images(
        self, rows: Sequence[Row], images: Sequence[ImageInputs] | None
    ) -> tuple[list[list[ImageInputs]], torch.Tensor, list[ImageInputs]]:
        """Image inputs row by row, the index of each image shown among the distinct ones, and the distinct ones."""
        counts = [len(images_of(row)) for row in rows]
        shown = self.shown(rows)
        # Models match rows by image_index; several images in a row are told from it by their number alone.
        alone = all(count == 1 for count in counts)
        keys = [image_identity(image) for image in shown] if alone else list(range(len(shown)))
        first = {key: number for number, key in reversed(list(enumerate(keys)))}  # where the image is shown first
        place = {key: index for index, key in enumerate(dict.fromkeys(keys))}
        if images is None:
            distinct = self.image_inputs([decode(shown[first[key]]) for key in place])
        else:
            distinct = [images[first[key]] for key in place]
        index = [place[key] for key in keys]
        inputs = iter([distinct[i] for i in index])
        return [[next(inputs) for _ in range(count)] for count in counts], torch.tensor(index), distinct

    def _pad(self, ids: list[list[int]], side: str) -> dict[str, Any]:
        mask = [[1] * len(row) for row in ids]
        return {"input_ids": _pad(ids, self.pad_id, side), "attention_mask": _pad(mask, 0, side)}


def images_of(row: Row) -> Sequence[Mapping[str, Any]]:
    """A row's images, in their order: those of its conversation, or its one."""
    return row.get("images") or [row["image"]]


def image_identity(image: Mapping[str, Any]) -> str | bytes:
    """What tells a row's image from another's within one data set: its path, or a digest of its bytes.

    The bytes themselves, as keys or in lists, would be those of all images at once.
    """
    return image["path"] if image["bytes"] is None else hashlib.sha256(image["bytes"]).digest()


def _pad(rows: list[list[int]], value: int, side: str) -> torch.Tensor:
    width = max(map(len, rows))
    fill = [[value] * (width - len(row)) for row in rows]
    return torch.tensor([gap + row if side == "left" else row + gap for row, gap in zip(rows, fill, strict=True)])
