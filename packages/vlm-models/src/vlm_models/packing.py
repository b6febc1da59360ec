"""One image, many questions: the rows that show an image go through the language model behind one copy of it.

    rows      <image> Is it red?  yes          packed    <image> Is it red? yes | blue? no | How many? two
              <image> Is it blue? no           segments   0 0 0   0  1   1   1     2    2     3   3    3
              <image> How many?   two

What all rows of an image begin with stands once, as segment 0; the rest of each row follows as a segment of its own. A
token sees what stands before it in its own segment and in segment 0, and has the position that it has in its row. So
every hidden state is what it would be in the row, and `places` says where each of them stands.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Packing:
    """Where the tokens of rows [rows, length] stand in packed rows [images, width].

    rows, columns [images, width]: the token of the unpacked batch that stands here; padding repeats the last one.
    segments [images, width]: 0 for what is shared, from 1 on for the rows, -1 for padding.
    places [rows, length]: index into the flattened packed rows; padding has some place.
    image_index [images]: which image a packed row shows.
    """

    rows: Tensor
    columns: Tensor
    segments: Tensor
    places: Tensor
    image_index: Tensor

    def gather(self, tensor: Tensor) -> Tensor:
        """Of a tensor [..., rows, length] what stands in the packed rows, [..., images, width]."""
        return tensor[..., self.rows, self.columns]

    def mask(self, dtype: torch.dtype) -> Tensor:
        """Additive attention mask [images, 1, width, width]: 0 where a token sees another, else the lowest number."""
        own, other = self.segments[:, :, None], self.segments[:, None, :]
        seen = ((other == 0) | (own == other)) & (other >= 0)
        seen &= torch.ones_like(seen[0]).tril()
        seen |= torch.eye(seen.shape[-1], dtype=torch.bool, device=seen.device)  # padding sees itself, not nothing
        return torch.zeros_like(seen, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)[:, None]


def pack(batch: Mapping[str, Any], placeholders: Tensor | None, beside: float) -> Packing | None:
    """How to pack a training batch; None if that would not spare the model work.

    `placeholders` [rows, length]: which tokens the image stands at, if it stands among them; rows that differ before it
    cannot share it. `beside`: to how many tokens the work amounts that a row makes beside those in `input_ids`.
    """
    index = batch["image_index"].tolist()
    if len(set(index)) == len(index):
        return None
    real = batch["attention_mask"].bool().tolist()
    of_image = torch.zeros_like(batch["input_ids"]) if placeholders is None else placeholders
    image_ends = (of_image * torch.arange(1, of_image.shape[1] + 1, device=of_image.device)).amax(1).tolist()
    ids = batch["input_ids"].tolist()
    columns = [[column for column, is_real in enumerate(row) if is_real] for row in real]
    groups: dict[int, list[int]] = {}
    for row, image in enumerate(index):
        groups.setdefault(image, []).append(row)
    packed = []  # of each image: (row, column, segment) of its tokens
    for rows in groups.values():
        shared = shared_length([[ids[row][column] for column in columns[row]] for row in rows])
        if (columns[rows[0]][shared - 1] + 1 if shared else 0) < image_ends[rows[0]]:
            return None
        tokens = [(rows[0], column, 0) for column in columns[rows[0]][:shared]]
        for segment, row in enumerate(rows, start=1):
            tokens += [(row, column, segment) for column in columns[row][shared:]]
        packed.append(tokens)
    width = max(map(len, packed))
    if (width + beside) * len(packed) >= (len(ids[0]) + beside) * len(index):
        return None
    places = torch.zeros(len(ids), len(ids[0]), dtype=torch.long)
    for image, (rows, tokens) in enumerate(zip(groups.values(), packed, strict=True)):
        for place, (row, column, segment) in enumerate(tokens):
            if segment:
                places[row, column] = image * width + place
        shared = sum(segment == 0 for *_, segment in tokens)
        for row in rows:
            places[row, columns[row][:shared]] = image * width + torch.arange(shared)
    filled = torch.tensor([tokens + [(*tokens[-1][:2], -1)] * (width - len(tokens)) for tokens in packed])
    device = batch["input_ids"].device
    parts = (*filled.unbind(-1), places, torch.tensor(list(groups)))
    return Packing(*(part.to(device) for part in parts))


def shared_length(rows: list[list[int]]) -> int:
    """With how many equal tokens all rows begin."""
    first, *others = rows
    length = min(map(len, rows))
    return next((i for i in range(length) if any(row[i] != first[i] for row in others)), length)
