"""An image encoder and a text decoder that looks at it through cross-attention: ViT + GPT-2.

Li et al. 2021, "TrOCR", and Rothe et al. 2020, "Leveraging Pre-trained Checkpoints for Sequence Generation Tasks".
"""

from typing import Any

from torch import Tensor, nn
from transformers import Cache, DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput

from vlm_models.last_layer import Span
from vlm_models.vlm import VLM, Batch, per_row, positions


class EncoderDecoder(VLM):
    """`VisionEncoderDecoderModel`; `input_ids` of a batch are the decoder's."""

    family = "encoder_decoder"
    vision_parts = ("encoder", "enc_to_dec_proj")
    language_parts = ("decoder",)

    @property
    def head(self) -> nn.Module:
        return self.model.decoder.get_output_embeddings()

    def _encode(self, batch: Batch) -> list[Tensor]:
        images = self.model.encoder(pixel_values=batch["pixel_values"]).last_hidden_state
        project = getattr(self.model, "enc_to_dec_proj", None)  # there only if the two parts differ in width
        return list(project(images) if project is not None else images)

    def hidden_states(self, features: list[Tensor], batch: Batch) -> Tensor:
        return self.model.decoder.base_model(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            position_ids=self.positions_of(batch),
            encoder_hidden_states=per_row(features, batch["image_index"]),
            past_key_values=batch.get("cache"),
            use_cache="cache" in batch,
        ).last_hidden_state

    def _last_layer(self) -> list[Span]:
        layers = getattr(self.model.decoder.base_model, "h", None)  # GPT-2's
        if layers is None:
            return []
        layer, seeing = layers[-1], layers[-1].crossattention
        return [(one, one) for one in (layer.attn.c_proj, seeing.q_attn, seeing.c_proj, layer.mlp)]

    def _beside(self, features: list[Tensor]) -> float:
        return len(features[0]) / 7  # a decoder layer has 14 d² multiplications for a token, 2 d² for one of the image

    def _cache(self) -> Cache:
        return EncoderDecoderCache(DynamicCache(), DynamicCache())

    def _generate(self, batch: Batch, **options: Any) -> Tensor:
        images = self.model.encoder(pixel_values=batch["pixel_values"]).last_hidden_state
        ids = self.model.generate(
            encoder_outputs=BaseModelOutput(last_hidden_state=per_row(images, batch["image_index"])),
            decoder_input_ids=batch["input_ids"],
            decoder_attention_mask=batch["attention_mask"],
            decoder_position_ids=positions(batch["attention_mask"]),
            pad_token_id=self.processor.tokenizer.eos_token_id,
            **options,
        )
        return ids[:, batch["input_ids"].shape[1] :]
