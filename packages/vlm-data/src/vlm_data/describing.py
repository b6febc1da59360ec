"""What is in a data set, in numbers: before training on it, look at it."""

import os
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass

import datasets

from vlm_data.collators import image_identity
from vlm_data.images import ImageError, decode, pixel_key
from vlm_data.looking_alike import Look, near_pairs

Histogram = dict[str, int]  # "5-8": how many; in ascending order

_BAR = 40  # characters of the longest bar


@dataclass(frozen=True)
class Description:
    """Counts of rows and pictures; `str()` makes it a page of text.

    turns and images are those of a conversation, empty for other data; prompts and references are their first.
    longer_side is in pixels and counts distinct pictures; the words of a text are what spaces part.
    copies: pictures that are there in several files. look_alikes: pairs of different pictures that are nearly equal.
    repeated: rows whose picture and prompt another row has too. broken: images that do not decode, and why.
    """

    rows: int
    captions: int
    questions: int
    without_reference: int
    references: int
    pictures: int
    turns: Histogram
    images: Histogram
    longer_side: Histogram
    sizes: Histogram
    prompt_words: Histogram
    reference_words: Histogram
    top_references: Histogram
    distinct_references: int
    repeated: int
    copies: list[list[str]]
    look_alikes: list[tuple[str, str, int]]
    broken: list[str]

    def as_dict(self) -> dict:
        return asdict(self)

    def __str__(self) -> str:
        lines = [
            f"{self.rows:,} rows: {self.captions:,} captions, {self.questions:,} questions; "
            f"{self.without_reference:,} without a reference",
            f"{self.pictures:,} distinct pictures; the most frequent sizes: "
            + ", ".join(f"{size} ({count:,})" for size, count in list(self.sizes.items())[:3]),
            f"{self.references:,} references, {self.distinct_references:,} of them distinct",
        ]
        for title, histogram in (
            ("turns of a conversation", self.turns),
            ("images of a conversation", self.images),
            ("longer side of the pictures, in pixels", self.longer_side),
            ("words in a prompt", self.prompt_words),
            ("words in a reference", self.reference_words),
            ("most frequent references", self.top_references),
        ):
            if histogram:
                lines += ["", title, *_bars(histogram)]
        lines += ["", f"{self.repeated:,} rows ask again what another row asks of the same picture"]
        lines += _some(f"{len(self.copies):,} pictures are there in several files", map(" = ".join, self.copies))
        pairs = (f"{one} ~ {other} ({distance} bits)" for one, other, distance in self.look_alikes)
        lines += _some(f"{len(self.look_alikes):,} pairs of pictures look alike", pairs)
        lines += _some(f"{len(self.broken):,} images cannot be read", self.broken)
        return "\n".join(lines)


def describe(rows: datasets.Dataset, top: int = 10) -> Description:
    """Describe rows as `open` gives them, every distinct image decoded once, in threads. top: references to list."""
    several = "images" in rows.column_names  # conversations
    images: dict[str | bytes, int] = {}  # the first row of each
    places: list[int] = []  # and where in that
    for index, shown in enumerate(rows["images" if several else "image"]):
        for place, image in enumerate(shown if several else [shown]):
            if (key := image_identity(image)) not in images:
                images[key] = index
                places.append(place)

    def look(index: int, place: int) -> tuple:
        return _look(rows[index]["images"][place] if several else rows[index]["image"])

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        looked = dict(zip(images, pool.map(look, images.values(), places), strict=True))
    files: dict[str, list] = {}  # of each picture
    for image, (_, key, _) in looked.items():
        files.setdefault(key, []).append(image)
    broken = [problem for problem, key, _ in looked.values() if key is None]
    files.pop(None, None)
    first = [looked[same[0]] for same in files.values()]  # one look at each picture
    sources = rows["source"][:]
    names = [_name(same[0], sources[images[same[0]]]) for same in files.values()]
    prompts, references = rows["prompt"][:], rows["references"][:]
    texts = [text for row in references for text in row]
    asked = Counter(
        (looked[image_identity(image)][1], prompt) for image, prompt in zip(rows["image"], prompts, strict=True)
    )
    answers = Counter(texts)
    return Description(
        rows=len(rows),
        captions=sum(prompt is None for prompt in prompts),
        questions=sum(prompt is not None for prompt in prompts),
        without_reference=sum(not row for row in references),
        references=len(texts),
        pictures=len(first),
        turns=_histogram(map(len, rows["turns"])) if several else {},
        images=_histogram(map(len, rows["images"])) if several else {},
        longer_side=_histogram(max(size) for size, _, _ in first),
        sizes=dict(Counter(f"{width}x{height}" for (width, height), _, _ in first).most_common(top)),
        prompt_words=_histogram(len(prompt.split()) for prompt in prompts if prompt is not None),
        reference_words=_histogram(len(text.split()) for text in texts),
        top_references=dict(answers.most_common(top)),
        distinct_references=len(answers),
        repeated=sum(count - 1 for (key, _), count in asked.items() if key is not None),
        copies=[[_name(image, sources[images[image]]) for image in same] for same in files.values() if len(same) > 1],
        look_alikes=[
            (names[one], names[other], distance) for one, other, distance in near_pairs([x[2] for x in first])
        ],
        broken=broken,
    )


def _look(image: dict) -> tuple:
    """(size, key, look) of a picture, or (problem, None, None)."""
    try:
        picture = decode(image)
    except ImageError as error:
        return str(error), None, None
    return picture.size, pixel_key(picture), Look.of(picture)


def _name(image: str | bytes, source: str) -> str:
    return source if isinstance(image, bytes) else image


def _histogram(values: Iterable[int]) -> Histogram:
    """Counts in bins that double: 0, 1, 2, 3-4, 5-8, and so on; empty bins in between are kept."""
    counts = Counter((value - 1).bit_length() if value > 0 else -1 for value in values)
    if not counts:
        return {}
    edges = range(min(counts), max(counts) + 1)
    labels = {-1: "0", 0: "1", 1: "2", **{edge: f"{2 ** (edge - 1) + 1}-{2**edge}" for edge in edges if edge > 1}}
    return {labels[edge]: counts[edge] for edge in edges}


def _bars(histogram: Histogram) -> list[str]:
    width = min(max(map(len, histogram)), _BAR)
    scale = _BAR / max(histogram.values())
    shown = {label if len(label) <= _BAR else f"{label[: _BAR - 1]}…": count for label, count in histogram.items()}
    return [
        f"  {label:>{width}} {'█' * max(round(count * scale), count > 0)} {count:,}".rstrip()
        for label, count in shown.items()
    ]


def _some(title: str, lines: Iterable[str], count: int = 5) -> list[str]:
    lines = list(lines)
    more = [f"  and {len(lines) - count:,} more"] if len(lines) > count else []
    return [title, *(f"  {line}" for line in lines[:count]), *more]
