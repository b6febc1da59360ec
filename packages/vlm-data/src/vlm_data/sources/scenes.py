"""Scenes: an unlimited data set of drawn shapes, with captions and questions, made from a seed.

A scene shows one shape, two different shapes beside or above each other, or a group of two to four equal shapes. It is
what the tiny checkpoints of `vlm-models` were trained on, and a data set for tests that needs no download.
"""

import io
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

from PIL import Image, ImageDraw

SIZE = 64  # pixels, both sides
COLORS = {
    "red": (215, 35, 35),
    "green": (35, 165, 55),
    "blue": (40, 70, 215),
    "yellow": (235, 215, 40),
    "orange": (240, 140, 30),
    "purple": (130, 45, 165),
    "brown": (125, 75, 40),
    "teal": (25, 145, 145),
    "black": (18, 18, 18),
    "gray": (128, 128, 128),
}
SHAPES = ["circle", "square", "rectangle", "triangle", "star"]
NUMBERS = {2: "two", 3: "three", 4: "four"}
EXISTS = ["is there a {}?", "can you see a {}?", "does the picture show a {}?", "is a {} visible?"]
EXISTS_NOT = [
    "is there no {}?",
    "can you see no {}?",
    "does the picture not show a {}?",
    "is no {} visible?",
    "is there not a {}?",
]


@dataclass(frozen=True)
class Shape:
    """A drawn shape: centre and radius in pixels."""

    kind: str
    color: str
    x: float
    y: float
    radius: float

    @property
    def size(self) -> str:
        return "large" if self.radius >= 10 else "small"

    @property
    def name(self) -> str:
        return f"{self.color} {self.kind}"


def read(split: str = "train", size: int = 1000, seed: int = 0) -> Iterator[dict]:
    """The rows of `size` scenes: for each a caption and its questions. Every split and seed has scenes of its own."""
    for index in range(size):
        image, pairs = scene(random.Random(f"{seed}/{split}/{index}"))
        picture = {"path": None, "bytes": png(image)}
        for number, (prompt, answer) in enumerate(pairs):
            yield {
                "id": f"scenes-{split}-{seed}-{index}-{number}",
                "image": picture,
                "prompt": prompt,
                "references": [answer],
                "source": f"scenes {split} seed {seed}: scene {index}",
            }


def scene(rng: random.Random) -> tuple[Image.Image, list[tuple[str | None, str]]]:
    """A picture and its (prompt, answer) pairs; the first pair is the caption, whose prompt is None."""
    shapes, caption = rng.choice([_single, _single, _pair, _pair, _group])(rng)
    background = tuple(rng.randint(225, 255) for _ in range(3))
    image = Image.new("RGB", (SIZE, SIZE), background)
    for shape in shapes:
        _draw(image, shape, rng)
    return image, [(None, caption), *_questions(shapes, rng)]


def texts() -> Iterator[str]:
    """Every kind of text that scenes can hold, for training a vocabulary."""
    rng = random.Random("texts")
    for _ in range(4000):
        for prompt, answer in scene(rng)[1]:
            yield f"{prompt} {answer}" if prompt else answer


def png(image: Image.Image) -> bytes:
    """The picture as the bytes of a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, "png", compress_level=1)
    return buffer.getvalue()


# ---- what is in a scene ----------------------------------------------------------------------------------------------


def _single(rng: random.Random) -> tuple[list[Shape], str]:
    radius = rng.choice([rng.uniform(5, 8), rng.uniform(12, 17)])
    x, y = (rng.uniform(radius, SIZE - radius) for _ in range(2))
    shape = Shape(rng.choice(SHAPES), rng.choice(list(COLORS)), x, y, radius)
    return [shape], f"a {shape.size} {shape.name}"


def _pair(rng: random.Random) -> tuple[list[Shape], str]:
    kinds, colors = rng.sample(SHAPES, 2), rng.sample(list(COLORS), 2)
    along = [rng.uniform(14, 18), rng.uniform(46, 50)]
    shapes = []
    vertical = rng.random() < 0.5
    for kind, color, place in zip(kinds, colors, along, strict=True):
        across = rng.uniform(22, 42)
        x, y = (across, place) if vertical else (place, across)
        shapes.append(Shape(kind, color, x, y, rng.uniform(7, 12)))
    relation = "above" if vertical else "left of"
    return shapes, f"a {shapes[0].name} {relation} a {shapes[1].name}"


def _group(rng: random.Random) -> tuple[list[Shape], str]:
    kind, color = rng.choice(SHAPES), rng.choice(list(COLORS))
    count = rng.choice(list(NUMBERS))
    cells = rng.sample([(16, 16), (48, 16), (16, 48), (48, 48)], count)
    shapes = [Shape(kind, color, x + rng.uniform(-4, 4), y + rng.uniform(-4, 4), rng.uniform(6, 10)) for x, y in cells]
    return shapes, f"{NUMBERS[count]} {shapes[0].name}s"


# ---- what can be asked about it --------------------------------------------------------------------------------------


def _questions(shapes: list[Shape], rng: random.Random) -> list[tuple[str, str]]:
    first, last = shapes[0], shapes[-1]
    asked = rng.choice(shapes)
    pairs = [
        (f"what color is the {asked.kind}?", asked.color),
        (f"which shape is {asked.color}?", asked.kind),
        ("how many shapes are there?", str(len(shapes))),
    ]
    if first.kind == last.kind:
        pairs += [
            (rng.choice(["what color is shown?", "which color does the shape have?"]), first.color),
            (rng.choice(["what shape is shown?", "what kind of shape can you see?"]), first.kind),
        ]
    else:
        relation, inverse = (
            ("above", "below") if abs(first.x - last.x) < abs(first.y - last.y) else ("left of", "right of")
        )
        pairs += [
            (f"what is {relation} the {last.kind}?", first.kind),
            (f"what is {inverse} the {first.kind}?", last.kind),
        ]
    if len(shapes) == 1:
        pairs.append((f"is the {first.kind} small or large?", first.size))
    pairs += [_exists(shapes, rng) for _ in range(4)]
    rng.shuffle(pairs)
    return pairs


def _exists(shapes: list[Shape], rng: random.Random) -> tuple[str, str]:
    """A yes-or-no question; the thing asked for is there half of the time, and a third of the questions are negated."""
    shown = rng.choice(shapes)
    there = rng.random() < 0.5
    kinds, colors = {shape.kind for shape in shapes}, {shape.color for shape in shapes}
    kind = shown.kind if there else rng.choice([kind for kind in SHAPES if kind not in kinds])
    color = shown.color if there else rng.choice([color for color in COLORS if color not in colors])
    thing = rng.choice([kind, f"{color} shape"])
    negated = rng.random() < 1 / 3
    question = rng.choice(EXISTS_NOT if negated else EXISTS).format(thing)
    return question, "yes" if there != negated else "no"


def is_negated(question: str) -> bool:
    """Whether a question asks for absence."""
    return not {"no", "not"}.isdisjoint(question.split())


# ---- drawing ---------------------------------------------------------------------------------------------------------


def _draw(image: Image.Image, shape: Shape, rng: random.Random) -> None:
    draw = ImageDraw.Draw(image)
    x, y, r = shape.x, shape.y, shape.radius
    fill = tuple(min(255, max(0, level + rng.randint(-18, 18))) for level in COLORS[shape.color])
    if shape.kind == "circle":
        draw.ellipse([x - r, y - r, x + r, y + r], fill=fill)
    elif shape.kind == "square":
        draw.rectangle([x - r, y - r, x + r, y + r], fill=fill)
    elif shape.kind == "rectangle":
        long, short = r, r * rng.uniform(0.45, 0.6)
        dx, dy = (long, short) if rng.random() < 0.5 else (short, long)
        draw.rectangle([x - dx, y - dy, x + dx, y + dy], fill=fill)
    elif shape.kind == "triangle":
        draw.polygon([(x, y - r), (x + r, y + r), (x - r, y + r)], fill=fill)
    else:
        corners = []
        for point in range(10):
            reach, angle = (r if point % 2 == 0 else 0.42 * r), math.pi * point / 5
            corners.append((x + reach * math.sin(angle), y - reach * math.cos(angle)))
        draw.polygon(corners, fill=fill)
