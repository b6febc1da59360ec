"""Each token once, and little padding: rows go through the language model in packed rows, as trees of prefixes.

    rows    Look: <1> Is it red?  yes     packed    Look: <1> Is it red? yes      a tree:  Look: ┬ <1> Is it ┬ red? yes
            Look: <1> Is it blue? no                blue? no                                    │           └ blue? no
            Look: <2> How many?   two               <2> How many? two                           └ <2> How many? two

What rows begin with, images included, stands once in a packed row. A token sees what stands before it in its row, which
is what is above it in the tree, and has the position that it has in its row; so every hidden state is what it would be
in the row, and `places` says where each of them stands. What stands behind the last token that predicts is left out.

Rows of an image stay together. Images are joined in packed rows of such a width that the work is least: in wider rows
fewer tokens are padding, and each has more keys to look at. Models that put the image beside their tokens (GIT, ViT +
GPT-2) get one image in a packed row: with several, all of these would stand beside every token, which is more work than
a few words of padding.
"""

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Packing:
    """Where the tokens of rows [rows, length] stand in packed rows [packed, width].

    tokens [packed, width]: index into the flattened rows of the token that stands here; in padding, of any of text.
    ends [packed, width]: the tokens that see this one stand from here on and before this column.
    places [rows, length]: index into the flattened packed rows; what is left out has some place.
    image_index [images]: which images the packed rows show, one after the other.
    padding: the share of the packed rows that is padding.
    """

    tokens: Tensor
    ends: Tensor
    places: Tensor
    image_index: Tensor
    padding: float

    def gather(self, tensor: Tensor) -> Tensor:
        """Of a tensor [..., rows, length] what stands in the packed rows, [..., packed, width]."""
        return tensor.flatten(-2)[..., self.tokens]

    def mask(self, dtype: torch.dtype) -> Tensor:
        """Additive attention mask [packed, 1, width, width]: 0 where a token sees another, else the lowest number."""
        seen = seen_until(self.ends)
        return torch.zeros_like(seen, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)[:, None]


def seen_until(ends: Tensor) -> Tensor:
    """Which tokens see which others, [packed, width, width]: none a later one, nor one that has ended."""
    column = torch.arange(ends.shape[1], device=ends.device)
    return (column <= column[:, None]) & (column[:, None] < ends[:, None])


def pack(
    batch: Mapping[str, Any],
    supervised: Tensor,
    images: Tensor | None,
    sizes: Sequence[int],
    work: Callable[[int, int], float],
) -> Packing | None:
    """How to pack a training batch; None if that would not spare the model work.

    `supervised` [rows, length]: which tokens are predicted, each at the place before it. `images` [rows, length]: which
    image a token stands for, -1 for text; None if images do not stand among the tokens, but one beside each row.
    `sizes`: for how many tokens each image stands. `work`: that of the model for so many rows of such a width.
    """
    beside = images is None
    images = torch.full_like(supervised, -1, dtype=torch.long) if images is None else images
    needed = (images >= 0) | supervised.roll(-1, 1)
    needed = batch["attention_mask"].bool() & (needed.flip(1).cumsum(1).flip(1) > 0)
    images, needed = images.cpu(), needed.cpu()
    keys = torch.where(images < 0, batch["input_ids"].cpu(), -1 - images)
    rows = [row.tolist() for row in keys[needed].split(needed.sum(1).tolist())]
    if not all(rows):
        return None
    shown = batch["image_index"].tolist() if beside else [tuple(key for key in row if key < 0) for row in rows]
    groups: dict[Any, list[int]] = {}
    for row in sorted(range(len(rows)), key=rows.__getitem__):
        groups.setdefault(shown[row], []).append(row)
    packed = list(groups.values())
    if not beside:
        packed = _joined(rows, packed, work)
    trees = [prefix_tree([rows[row] for row in its]) for its in packed]
    width = max(len(ends) for _, ends in trees)
    if work(len(trees), width) >= work(len(rows), needed.shape[1] - 1):
        return None

    ends = torch.arange(1, width + 1).repeat(len(trees), 1)  # padding is seen by itself alone
    stands: list[list[int]] = [[]] * len(rows)
    for number, (its, (their_stands, their_ends)) in enumerate(zip(packed, trees, strict=True)):
        ends[number, : len(their_ends)] = torch.tensor(their_ends)
        for row, one in zip(its, their_stands, strict=True):
            stands[row] = [number * width + place for place in one]
    where = torch.tensor([place for one in stands for place in one])
    tokens = (needed & (images < 0)).flatten().nonzero()[0].repeat(len(trees), width)
    tokens.view(-1)[where] = needed.flatten().nonzero()[:, 0]
    places = torch.zeros(needed.shape, dtype=torch.long).masked_scatter(needed, where)
    image_index = list(groups) if beside else _one_by_one(images.flatten()[tokens], sizes)
    parts = (part.to(supervised.device) for part in (tokens, ends, places, torch.tensor(image_index, dtype=torch.long)))
    return Packing(*parts, padding=1 - sum(len(ends) for _, ends in trees) / tokens.numel())


def _joined(rows: list[list[int]], groups: list[list[int]], work: Callable[[int, int], float]) -> list[list[int]]:
    """The rows of some images together, in order, as many as make the least work."""
    common = shared_length(rows)
    sizes = [len(prefix_tree([rows[row] for row in its])[1]) - common for its in groups]
    dealt = deal(sizes, lambda count, width: work(count, common + width))
    return [sorted((row for number in its for row in groups[number]), key=rows.__getitem__) for its in dealt]


def prefix_tree(rows: Sequence[list[int]]) -> tuple[list[list[int]], list[int]]:
    """Where the tokens of each row stand, if what sorted rows begin with stands once, and `ends` as in `Packing`."""
    places: list[list[int]] = []
    ends: list[int] = []
    path: list[int] = []
    for number, row in enumerate(rows):
        shared = shared_length(rows[number - 1 : number + 1]) if number else 0
        for place in path[shared:]:
            ends[place] = len(ends)
        path = path[:shared] + list(range(len(ends), len(ends) + len(row) - shared))
        ends += [0] * (len(row) - shared)
        places.append(path)
    for place in path:
        ends[place] = len(ends)
    return places, ends


def deal(sizes: Sequence[int], work: Callable[[int, int], float]) -> list[list[int]]:
    """Numbers of the sizes, dealt to as many rows as make the least work.

    The largest are dealt first, each to the emptiest row (Graham 1969, "Bounds on multiprocessing timing anomalies").
    """
    largest_first = sorted(range(len(sizes)), key=lambda number: -sizes[number])
    bounds = [(work(count, max(max(sizes), -(-sum(sizes) // count))), count) for count in range(1, len(sizes) + 1)]
    least: tuple[float, list[list[int]]] = (float("inf"), [])
    for bound, count in sorted(bounds):
        if bound >= least[0]:
            break
        rows: list[list[int]] = [[] for _ in range(count)]
        emptiest = [(0, row) for row in range(count)]
        for number in largest_first:
            filled, row = emptiest[0]
            rows[row].append(number)
            heapq.heapreplace(emptiest, (filled + sizes[number], row))
        least = min(least, (work(count, max(emptiest)[0]), rows))
    return least[1]


def _one_by_one(images: Tensor, sizes: Sequence[int]) -> list[int]:
    """The images one after the other, of each place its image, -1 for text."""
    stands = images[images >= 0].tolist()
    found: list[int] = []
    place = 0
    while place < len(stands):
        found.append(stands[place])
        place += sizes[found[-1]]
    return found


def shared_length(rows: Sequence[Sequence[int]]) -> int:
    """With how many equal tokens all rows begin."""
    first, last = min(rows), max(rows)  # what these two begin with, those between them do
    return next(
        (place for place, (one, other) in enumerate(zip(first, last, strict=False)) if one != other), len(first)
    )
