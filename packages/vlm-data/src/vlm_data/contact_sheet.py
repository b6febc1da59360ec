"""Random rows on one page: each picture with its prompt and reference under it."""

import random

import datasets
from PIL import Image, ImageDraw, ImageFont

from vlm_data.images import ImageError, decode

_COLUMNS, _SIDE, _GAP = 6, 220, 14  # pictures in a line; pixels
_FONT, _LEADING, _LINES = 14, 18, 4  # pixels; lines of each text
_INK, _ANSWER, _PAPER = "#202020", "#1a5fb4", "white"


def contact_sheet(rows: datasets.Dataset, count: int = 24, seed: int = 0) -> Image.Image:
    """A picture of `count` rows chosen by the seed (all if there are fewer), in their order; the prompt is dark, the
    reference blue. An image that does not decode shows its error instead."""
    chosen = sorted(random.Random(seed).sample(range(len(rows)), min(count, len(rows))))
    font = ImageFont.load_default(_FONT)
    cells = [_cell(rows[index], font) for index in chosen]
    columns = min(_COLUMNS, len(cells)) or 1
    lines = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    heights = [max(cell.height for cell in line) for line in lines]
    size = (columns * (_SIDE + _GAP) + _GAP, sum(heights) + _GAP * (len(lines) + 1))
    sheet = Image.new("RGB", size, _PAPER)
    top = _GAP
    for line, height in zip(lines, heights, strict=True):
        for column, cell in enumerate(line):
            sheet.paste(cell, (_GAP + column * (_SIDE + _GAP), top))
        top += height + _GAP
    return sheet


def _cell(row: dict, font: ImageFont.ImageFont) -> Image.Image:
    prompt, references = row["prompt"], row["references"]
    reference = references[0] if references else "(no reference)"
    if len(references) > 1:
        reference += f"  (and {len(references) - 1} more)"
    texts = [(line, _INK) for line in _wrapped(prompt or "", font)]
    texts += [(line, _ANSWER) for line in _wrapped(reference, font)]
    cell = Image.new("RGB", (_SIDE, _SIDE + 6 + _LEADING * len(texts)), _PAPER)
    draw = ImageDraw.Draw(cell)
    try:
        picture = decode(row["image"])
        scale = _SIDE / max(picture.size)
        size = [max(1, round(side * scale)) for side in picture.size]
        # Small pictures are enlarged without blur, so that their pixels can be seen.
        how = Image.Resampling.NEAREST if scale >= 2 else Image.Resampling.LANCZOS
        cell.paste(picture.resize(size, how), ((_SIDE - size[0]) // 2, _SIDE - size[1]))
    except ImageError as error:
        for number, line in enumerate(_wrapped(str(error), font)):
            draw.text((0, _LEADING * number), line, "#c01c28", font)
    for number, (line, color) in enumerate(texts):
        draw.text((0, _SIDE + 6 + _LEADING * number), line, color, font)
    return cell


def _wrapped(text: str, font: ImageFont.ImageFont) -> list[str]:
    """The text in lines that fit; what is left over after the last becomes an ellipsis."""
    lines, rest = [], " ".join(text.split())
    while rest and len(lines) < _LINES:
        end = _fitting(rest, font)
        if end < len(rest) and " " in rest[:end]:  # break at a space, a word that is too long anywhere
            end = rest.rindex(" ", 0, end + 1)
        lines.append(rest[:end].strip())
        rest = rest[end:].strip()
    if rest:
        lines[-1] = lines[-1][: _fitting(lines[-1] + "…", font) - 1] + "…"
    return lines


def _fitting(text: str, font: ImageFont.ImageFont) -> int:
    """How many of the first characters fit in a line, at least one."""
    end = min(len(text), _SIDE)  # no character is narrower than a pixel
    while end > 1 and font.getlength(text[:end]) > _SIDE:
        end -= 1
    return end
