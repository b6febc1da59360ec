"""Chat models: a row is written with the processor's own chat template; what the assistant says is trained on.

The template holds one placeholder for each image. What the processor writes in its place (one for each token that the
image becomes, marks between its tiles) goes with the image as `placeholders`: questions about one image share it.
"""

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from vlm_data.collators.base import Collator, ImageInputs, Row, Span, images_of
from vlm_data.collators.conversation_text import IMAGE, Message, answered_at, messages_of, written
from vlm_data.images import size_of
from vlm_data.schema import DataError

TILES = ("pixel_values", "pixel_attention_mask")  # an image's tiles, and which of their pixels are real
# Image encoders that take one of these want as many tiles of every image; others all images' tiles in a row.
PADDED = ("pixel_attention_mask", "image_sizes")
Edges = tuple[tuple[int, ...], tuple[int, ...]]  # text that an image's placeholders begin and end with


class ChatCollator(Collator):
    """Collates for processors with a chat template: SmolVLM, Idefics3, LLaVA-OneVision, Gemma 3, InternVL."""

    def __init__(self, processor: Any, *args: Any, **options: Any):
        super().__init__(processor, *args, **options)
        added = getattr(self.tokenizer, "get_added_vocab", dict)()
        self._marks = {*added.values(), self.tokenizer.eos_token_id}  # tokens that text on either side never joins
        ends = sorted({*added, self.tokenizer.eos_token}, key=len, reverse=True)
        self._end = re.compile("|".join(map(re.escape, ends)))
        self._remember()

    def _remember(self) -> None:
        # Rendering a template takes longer than the rest of collation; questions repeat, within and between epochs.
        self._pieces = lru_cache(maxsize=16384)(self._pieces)
        self._sized = lru_cache(maxsize=16384)(self._sized)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_pieces", "_sized")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """In a worker process that is spawned, not forked."""
        self.__dict__.update(state)
        self._remember()

    def spans(self, row: Row, images: Sequence[ImageInputs], answer: str | None) -> list[Span]:
        bodies, edges = [], []
        for ids in map(self.image_ids, images):
            marks = [place for place, token in enumerate(ids) if token in self._marks] or [0, len(ids) - 1]
            start, end = marks[0], marks[-1] + 1
            bodies.append(Span(ids[start:end]))
            edges.append((tuple(ids[:start]), tuple(ids[end:])))
        try:
            messages = messages_of(row, len(images), answer)
            pieces = self._pieces(messages, tuple(edges))
        except DataError as error:
            raise DataError(f"{row['source']}: {str(error).removeprefix(row['source'] + ': ')}") from error
        shown = iter(bodies)
        return [next(shown) if piece is None else piece for piece in pieces]

    def prompts(self, rows: Sequence[Row]) -> dict[str, Any]:
        """The same up to the first answer, with the images shown until then."""
        return super().prompts([_asked(row) for row in rows])

    def image_ids(self, image: ImageInputs) -> list[int]:
        return image["placeholders"].tolist()

    def outline(self, image: Mapping[str, Any]) -> ImageInputs:
        return self._sized(size_of(image))

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

    def _sized(self, size: tuple[int, int]) -> ImageInputs:
        """What tells the tokens of an image of this size, by way of a blank one."""
        return {"placeholders": self._image_input(Image.new("RGB", size))["placeholders"]}

    def _image_input(self, image: Image.Image) -> ImageInputs:
        token = self.processor.image_token
        inputs = self.processor(text=[token], images=[image], add_special_tokens=False, return_tensors="pt")
        padded = any(name in inputs for name in PADDED)  # then there is an axis of images before that of tiles
        taken = {name: inputs[name] for name in {*TILES, *PADDED} if name in inputs}
        of_image = {name: value[0] if padded else value for name, value in taken.items()}
        return {"placeholders": inputs["input_ids"][0], **of_image}

    def _pieces(self, messages: tuple[Message, ...], edges: tuple[Edges, ...]) -> list[Span | None]:
        """The conversation's spans, None for each image, whose text at its ends is tokenized with what is around it."""
        token = self.processor.image_token
        pieces: list[Span | None] = []
        waiting, shown = "", iter(edges)  # text that the last image ends with
        texts = written(messages, self.processor.apply_chat_template, self._end)
        found = sum(text.count(token) for text, _ in texts)
        if found != len(edges):
            raise DataError(f"the text holds the image placeholder {token} {found} times; remove it")
        for text, trained in texts:
            if trained and token in text:
                raise DataError(f"the answer holds the image placeholder {token}; remove it")
            *before_images, last = text.split(token)
            for part in before_images:
                first, after = (self.tokenizer.decode(edge) if edge else "" for edge in next(shown))
                pieces += [self._span(waiting + part + first), None]
                waiting = after
            pieces.append(self._span(waiting + last, trained))
            waiting = ""
        return pieces

    def _span(self, text: str, trained: bool = False) -> Span:
        ids = self.tokenizer(text, add_special_tokens=False).input_ids
        if getattr(self.processor, "image_token_id", None) in ids:  # the model would put an image there
            raise DataError("the text holds what stands for an image's tokens; remove it")
        ended = not trained or ids and ids[-1] in self._marks
        return Span(ids if ended else [*ids, self.tokenizer.eos_token_id], trained)


def _asked(row: Row) -> Row:
    """The row up to its first answer."""
    if not row.get("turns"):
        return row
    turns = row["turns"][: answered_at(row["turns"])]
    tags = sum(turn["text"].count(IMAGE) for turn in turns)
    return {**row, "turns": turns, "images": images_of(row)[: tags or 1]}


def _stack_padded(tensors: Sequence[Tensor]) -> Tensor:
    """Stacked, each padded at the end of every axis with zeros (images) or False (masks)."""
    sizes = [max(sizes) for sizes in zip(*(tensor.shape for tensor in tensors), strict=True)]
    gaps = [
        [gap for size, has in zip(reversed(sizes), reversed(tensor.shape), strict=True) for gap in (0, size - has)]
        for tensor in tensors
    ]
    return torch.stack([F.pad(tensor, gap) for tensor, gap in zip(tensors, gaps, strict=True)])
