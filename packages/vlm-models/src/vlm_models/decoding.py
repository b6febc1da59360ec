"""Decode token by token, with what the rows of one image begin with computed once.

    rows    <image> Is it red?          shared   <image> Is it      keys and values once for each image,
            <image> Is it blue?                                     then copied for its rows
            <image> Is it a square?     own      red? | blue? | a square?

The model sees the rest of each prompt, and then each new token, through the cache of keys and values. Everything is
padded on the left and has the positions that it has in its row, so that a row's answer depends on no other row.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vlm_models.packing import shared_length
from vlm_models.sampling import Choose

if TYPE_CHECKING:
    from vlm_models.vlm import VLM, Batch


def decode(vlm: "VLM", batch: "Batch", limits: list[int], choose: Choose) -> tuple[list[list[int]], list[list[float]]]:
    """Token ids and their log-probabilities, row by row: each row ends at an end token or at its limit."""
    features = batch["features"] if "features" in batch else vlm.encode_images(batch)
    positions, index = vlm._positions(batch), batch["image_index"]
    rows, hidden = _read_prompts(vlm, features, batch, positions)
    # Positions in time, height and width (M-RoPE) go on from the highest of the three.
    highest = positions.masked_fill(~batch["attention_mask"].bool(), -1).amax(-1)
    following = highest.expand(1, *highest.shape).flatten(0, -2).amax(0) + 1
    token_ids: list[list[int]] = [[] for _ in limits]
    logprobs: list[list[float]] = [[] for _ in limits]
    active = list(range(len(limits)))
    while True:
        logits = vlm.head(hidden)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        chosen = choose(logits, active)
        theirs = logits.log_softmax(-1).gather(-1, chosen[:, None])[:, 0]
        for row, token, logprob in zip(active, chosen.tolist(), theirs.tolist(), strict=True):
            token_ids[row].append(token)
            logprobs[row].append(logprob)
        going_on = [
            place
            for place, row in enumerate(active)
            if token_ids[row][-1] not in vlm.end_ids and len(token_ids[row]) < limits[row]
        ]
        if not going_on:
            return token_ids, logprobs
        if len(going_on) < len(active):  # rows that are done leave the batch
            active = [active[place] for place in going_on]
            kept = torch.tensor(going_on, device=chosen.device)
            chosen, following = chosen[kept], following[kept]
            rows.select(kept, index[torch.tensor(active, device=index.device)])
        place = following.expand(*positions.shape[:-2], -1)[..., None]
        hidden = rows.read(chosen[:, None], torch.ones_like(chosen[:, None], dtype=torch.bool), place)
        following = following + 1


class _Rows:
    """Rows that the language model reads, piece by piece.

    cache: keys and values of what was read. seen [rows, width]: which of its columns are a row's tokens, not padding.
    """

    def __init__(self, vlm: "VLM", features: list[Tensor], image_index: Tensor, count: int):
        self.vlm, self.features, self.image_index = vlm, features, image_index
        self.cache = vlm._cache()
        self.seen = torch.ones(count, 0, dtype=torch.bool, device=image_index.device)

    def read(self, ids: Tensor, real: Tensor, positions: Tensor) -> Tensor:
        """Read tokens [rows, width], padded on the left where not `real`: hidden states [rows, dim] of the last."""
        rows, width = ids.shape
        before = self.cache.get_seq_length()
        own = real[:, None] & torch.ones(width, width, dtype=torch.bool, device=ids.device).tril()
        own |= torch.eye(width, dtype=torch.bool, device=ids.device)  # padding sees itself, not nothing
        visible = torch.cat([self.seen[:, None].expand(-1, width, -1), own], dim=-1)
        dtype = self.vlm.model.dtype
        mask = torch.zeros_like(visible, dtype=dtype).masked_fill(~visible, torch.finfo(dtype).min)
        piece = {
            "input_ids": ids,
            "attention_mask": mask[:, None],
            "position_ids": positions,
            "image_index": self.image_index,
            "cache": self.cache,
        }
        hidden = self.vlm.hidden_states(self.features, piece)
        images = self.cache.get_seq_length() - before - width  # GIT puts them before its text
        self.seen = torch.cat([self.seen, real.new_ones(rows, images), real], dim=1)
        return hidden[:, -1]

    def select(self, rows: Tensor, image_index: Tensor) -> None:
        """Go on with these rows, which may come several times."""
        self.cache.batch_select_indices(rows)
        self.seen, self.image_index = self.seen[rows], image_index


def _read_prompts(vlm: "VLM", features: list[Tensor], batch: "Batch", positions: Tensor) -> tuple[_Rows, Tensor]:
    """The rows with their prompts read, and the hidden states [rows, dim] of their last tokens."""
    index = batch["image_index"]
    real = batch["attention_mask"].bool().tolist()
    columns = [[column for column, is_real in enumerate(row) if is_real] for row in real]
    groups = _sharing(vlm, batch, columns)

    def piece(rows: Sequence[int], pieces: list[list[int]]) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens of rows at some columns, padded on the left: ids, which are real, positions."""
        width = max(map(len, pieces))
        filled = torch.tensor([[0] * (width - len(one)) + one for one in pieces], device=index.device)
        lengths = torch.tensor([len(one) for one in pieces], device=index.device)
        places = torch.tensor(rows, device=index.device)[:, None], filled
        is_real = torch.arange(width, device=index.device) >= width - lengths[:, None]
        ids = batch["input_ids"][places].masked_fill(~is_real, min(vlm.end_ids))  # any but an image's placeholder
        return ids, is_real, positions[(..., *places)]

    everyone = list(range(len(columns)))
    if groups is None:
        rows = _Rows(vlm, features, index, len(columns))
        return rows, rows.read(*piece(everyone, columns))
    firsts, lengths = zip(*((group[0], shared) for group, shared in groups), strict=True)
    rows = _Rows(vlm, features, index[torch.tensor(firsts, device=index.device)], len(firsts))
    hidden = rows.read(*piece(firsts, [columns[row][:shared] for row, shared in zip(firsts, lengths, strict=True)]))
    group_of = {row: number for number, (group, _) in enumerate(groups) for row in group}
    copies = torch.tensor([group_of[row] for row in everyone], device=index.device)
    rows.select(copies, index)
    hidden = hidden[copies]
    own = [columns[row][lengths[group_of[row]] :] for row in everyone]
    if any(own):
        goes_on = torch.tensor([bool(one) for one in own], device=index.device)[:, None]
        hidden = torch.where(goes_on, rows.read(*piece(everyone, own)), hidden)
    return rows, hidden


def _sharing(vlm: "VLM", batch: "Batch", columns: list[list[int]]) -> list[tuple[list[int], int]] | None:
    """The rows of each image and with how many equal tokens they begin; None if nothing is spared by that."""
    index, ids = batch["image_index"].tolist(), batch["input_ids"].tolist()
    groups: dict[int, list[int]] = {}
    for row, image in enumerate(index):
        groups.setdefault(image, []).append(row)
    if len(groups) == len(index):
        return None
    placeholders = vlm._placeholders(batch)
    sharing = []
    for rows in groups.values():
        shared = shared_length([[ids[row][column] for column in columns[row]] for row in rows])
        behind = columns[rows[0]][shared:]
        if shared == 0 or placeholders is not None and bool(placeholders[rows[0], behind].any()):
            return None  # the image itself would not be shared
        sharing.append((rows, shared))
    return sharing
