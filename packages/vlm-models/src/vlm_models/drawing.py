"""Attention drawn over its image: one panel for each word."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from vlm_models.attention_maps import words_of
from vlm_models.generation import Answer

if TYPE_CHECKING:
    from vlm_models.vlm import VLM

SIDE = 224  # pixels of the longer side of a panel
COLUMNS = 6
GAP = 8
TEXT = 18  # font size
DIM, HEAT = (16, 16, 32), (255, 96, 0)  # over what is not looked at, and over what is


def draw_answer(vlm: "VLM", answer: Answer, maps: Tensor, image: Image.Image) -> Image.Image:
    """Where the model looked in the image as it said each word of an answer; `maps` are its `attention_maps`."""
    words = words_of(vlm, answer)
    return draw_attention(image, [word for word, _ in words], [maps[tokens].mean(0) for _, tokens in words])


def draw_attention(image: Image.Image, words: Sequence[str], maps: Sequence[Tensor]) -> Image.Image:
    """The image, and beside it for each word the image darkened where it is not looked at, glowing where it is.

    maps: one [height, width] for each word, drawn relative to its own highest value. The percentage beside the word is
    the map's sum, the share of the attention that lies on the image.
    """
    image = image.convert("RGB")
    scale = SIDE / max(image.size)
    image = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
    panels = [("", image)]
    for word, one in zip(words, maps, strict=True):
        panels.append((f"{word} {one.sum():.0%}", _glowing(image, one.cpu())))
    columns = min(COLUMNS, len(panels))
    font = ImageFont.load_default(TEXT)
    step = SIDE + GAP, image.height + GAP + 2 * TEXT
    size = GAP + columns * step[0], GAP + -(-len(panels) // columns) * step[1]
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for place, (label, panel) in enumerate(panels):
        x, y = GAP + place % columns * step[0], GAP + place // columns * step[1]
        sheet.paste(panel, (x, y))
        draw.text((x, y + panel.height + 4), _fitting(label, font), "black", font)
    return sheet


def _glowing(image: Image.Image, one: Tensor) -> Image.Image:
    strength = (255 * one / one.max().clamp(min=1e-12)).round().to(torch.uint8)
    strength = Image.fromarray(strength.numpy()).resize(image.size, Image.Resampling.BICUBIC)
    dimmed = Image.blend(image, Image.new("RGB", image.size, DIM), 0.6)
    glowing = Image.blend(image, Image.new("RGB", image.size, HEAT), 0.55)
    return Image.composite(glowing, dimmed, strength)


def _fitting(label: str, font: ImageFont.FreeTypeFont) -> str:
    while font.getlength(label) > SIDE:
        word, share = label.rsplit(" ", 1)
        label = f"{word[:-2]}… {share}"
    return label
