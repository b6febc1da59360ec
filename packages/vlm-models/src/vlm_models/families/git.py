"""GIT: image tokens stand before the text in one transformer; images see themselves, text sees images and its past.

Wang et al. 2022, "GIT: A Generative Image-to-text Transformer for Vision and Language".
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlm_models.vlm import VLM, Batch, begins, per_row


class Git(VLM):
    """`GitForCausalLM`."""

    family = "git"
    vision_parts = ("git.image_encoder", "git.visual_projection")
    language_parts = ("git.encoder",)

    @property
    def head(self) -> nn.Module:
        return self.model.output

    def _encode(self, batch: Batch) -> list[Tensor]:
        git = self.model.git
        return list(git.visual_projection(git.image_encoder(batch["pixel_values"]).last_hidden_state))

    def hidden_states(self, features: list[Tensor], batch: Batch) -> Tensor:
        mask = batch["attention_mask"]
        text = self.model.git.embeddings(batch["input_ids"], position_ids=self.positions_of(batch))
        cache = {"past_key_values": batch.get("cache")}
        if not begins(batch):
            return self.model.git.encoder(text, attention_mask=mask, **cache).last_hidden_state
        images = per_row(features, batch["image_index"]).to(text.dtype)
        hidden = torch.cat([images, text], dim=1)
        mask = _mask(images.shape[1], mask, hidden)
        hidden = self.model.git.encoder(hidden, attention_mask=mask, **cache).last_hidden_state
        return hidden[:, images.shape[1] :]

    def _beside(self, features: list[Tensor]) -> float:
        return len(features[0])

    @property
    def end_ids(self) -> frozenset[int]:
        return super().end_ids | {self.processor.tokenizer.sep_token_id} - {None}

    def _generate(self, batch: Batch, **options: Any) -> Tensor:
        ids = self.model.generate(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            pixel_values=per_row(batch["pixel_values"], batch["image_index"]),
            pad_token_id=self.processor.tokenizer.pad_token_id,
            **options,
        )
        return ids[:, batch["input_ids"].shape[1] :]


def _mask(images: int, text_mask: Tensor, like: Tensor) -> Tensor:
    """Additive attention mask [rows, 1, images + text, images + text]: 0 where position i may see position j.

    `text_mask` is 1 at real tokens [rows, text], or such a mask of the text alone [rows, 1, text, text].
    """
    if text_mask.ndim == 4:
        whole = F.pad(text_mask, (images, 0, images, 0))  # all see the images
        whole[:, :, :images, images:] = torch.finfo(like.dtype).min
        return whole
    length = images + text_mask.shape[1]
    index = torch.arange(length, device=text_mask.device)
    causal = (index[None, :] <= index[:, None]) | (index[None, :] < images)
    real = torch.cat([text_mask.new_ones(len(text_mask), images), text_mask], dim=1).bool()
    seen = causal[None] & real[:, None]
    return torch.zeros_like(seen, dtype=like.dtype).masked_fill(~seen, torch.finfo(like.dtype).min)[:, None]
