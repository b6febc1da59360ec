"""Chat models with images in the conversation; today Qwen2-VL.

Wang et al. 2024, "Qwen2-VL: Enhancing Vision-Language Model's Perception of the World at Any Resolution".
"""

from typing import Any

import torch
from torch import Tensor, nn

from vlm_models.vlm import VLM, Batch, begins


class Chat(VLM):
    """`Qwen2VLForConditionalGeneration`: images of any size, positions in time, height and width (M-RoPE)."""

    family = "chat"
    vision_parts = ("model.visual",)
    language_parts = ("model.language_model",)

    @property
    def head(self) -> nn.Module:
        return self.model.get_output_embeddings()

    def _encode(self, batch: Batch) -> list[Tensor]:
        return list(self.model.get_image_features(batch["pixel_values"], batch["image_grid_thw"]).pooler_output)

    def hidden_states(self, features: list[Tensor], batch: Batch) -> Tensor:
        ids, index = batch["input_ids"], batch["image_index"]
        embeds = self.model.get_input_embeddings()(ids)
        if begins(batch):
            images = torch.cat([features[i] for i in index.tolist()]).to(embeds.dtype)
            placeholders, _ = self.model.model.get_placeholder_mask(ids, embeds, images)
            embeds = embeds.masked_scatter(placeholders, images)
        return self.model.model.language_model(
            inputs_embeds=embeds,
            attention_mask=batch["attention_mask"],
            position_ids=self.positions_of(batch),
            past_key_values=batch.get("cache"),
            use_cache="cache" in batch,
        ).last_hidden_state

    def _placeholders(self, batch: Batch) -> Tensor:
        return batch["mm_token_type_ids"] != 0

    def _positions(self, batch: Batch) -> Tensor:
        position_ids, _ = self.model.model.get_rope_index(
            batch["input_ids"],
            mm_token_type_ids=batch["mm_token_type_ids"],
            image_grid_thw=batch["image_grid_thw"][batch["image_index"]],
            attention_mask=batch["attention_mask"],
        )
        return position_ids

    def _generate(self, batch: Batch, **options: Any) -> Tensor:
        index, grids = batch["image_index"], batch["image_grid_thw"]
        pixels = batch["pixel_values"].split(grids.prod(-1).tolist())
        ids = self.model.generate(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            mm_token_type_ids=batch["mm_token_type_ids"],
            pixel_values=torch.cat([pixels[i] for i in index.tolist()]),
            image_grid_thw=grids[index],
            pad_token_id=self.processor.tokenizer.pad_token_id,
            **options,
        )
        return ids[:, batch["input_ids"].shape[1] :]
