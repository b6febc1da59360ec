"""BLIP-2: a Q-Former turns an image into a few tokens of a frozen language model.

Li et al. 2023, "BLIP-2: Bootstrapping Language-Image Pre-training with Frozen Image Encoders and Large Language
Models".
"""

from typing import Any

import torch
from torch import Tensor, nn

from vlm_models.errors import ModelError
from vlm_models.vlm import VLM, Batch, begins, per_row


class Blip2(VLM):
    """`Blip2ForConditionalGeneration` with a decoder-only language model (OPT)."""

    family = "blip2"
    vision_parts = ("vision_model", "query_tokens", "qformer", "language_projection")
    language_parts = ("language_model",)

    def __init__(self, model: nn.Module, processor: Any, name: str):
        super().__init__(model, processor, name)
        if not model.config.use_decoder_only_language_model:
            kind = model.config.text_config.model_type
            raise ModelError(f"{name}: BLIP-2 with a {kind} language model is not supported; use one with OPT")

    @property
    def head(self) -> nn.Module:
        return self.model.language_model.get_output_embeddings()

    def _encode(self, batch: Batch) -> list[Tensor]:
        return list(self.model.get_image_features(batch["pixel_values"]).pooler_output)

    def hidden_states(self, features: list[Tensor], batch: Batch) -> Tensor:
        return self.model.language_model.base_model(
            inputs_embeds=self._embeds(features, batch),
            attention_mask=batch["attention_mask"],
            position_ids=self.positions_of(batch),
            past_key_values=batch.get("cache"),
            use_cache="cache" in batch,
        ).last_hidden_state

    def _placeholders(self, batch: Batch) -> Tensor:
        return batch["input_ids"] == self.model.config.image_token_id

    def _generate(self, batch: Batch, **options: Any) -> Tensor:
        return self.model.language_model.generate(
            inputs_embeds=self._embeds(batch["features"], batch),
            attention_mask=batch["attention_mask"],
            pad_token_id=self.processor.tokenizer.pad_token_id,
            **options,
        )

    @property
    def end_ids(self) -> frozenset[int]:
        # OPT checkpoints of BLIP-2 end a sentence with a line break, its tokenizer with </s>: both stop.
        return super().end_ids | {self.model.config.text_config.eos_token_id} - {None}

    def _embeds(self, features: list[Tensor], batch: Batch) -> Tensor:
        """Token embeddings with the image's features in place of its placeholders."""
        ids = batch["input_ids"]
        embeds = self.model.get_input_embeddings()(ids)
        if not begins(batch):
            return embeds
        images = per_row(features, batch["image_index"]).to(embeds.dtype)
        placeholders = ids == self.model.config.image_token_id
        if int(placeholders.sum()) != images.shape[0] * images.shape[1]:
            raise ModelError(
                f"{int(placeholders.sum())} image placeholders for {images.shape[0]} images of {images.shape[1]} tokens"
            )
        return torch.masked_scatter(embeds, placeholders[..., None], images)
