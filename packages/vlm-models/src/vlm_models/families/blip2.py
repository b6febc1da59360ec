"""BLIP-2: a Q-Former turns an image into a few tokens of a frozen language model.

Li et al. 2023, "BLIP-2: Bootstrapping Language-Image Pre-training with Frozen Image Encoders and Large Language
Models".
"""

from typing import Any

import torch
from torch import Tensor, nn

from vlm_models.errors import ModelError
from vlm_models.last_layer import Span
from vlm_models.vlm import IGNORE, VLM, Batch, begins, per_row


class Blip2(VLM):
    """`Blip2ForConditionalGeneration` with a decoder-only language model (OPT)."""

    family = "blip2"
    vision_parts = ("vision_model", "query_tokens", "qformer", "language_projection")
    language_parts = ("language_model",)

    def __init__(self, model: nn.Module, processor: Any, name: str):
        super().__init__(model, processor, name)
        if processor is not None:
            self.notes += _complete(model, processor)

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

    def _last_layer(self) -> list[Span]:
        layer = self.model.language_model.base_model.decoder.layers[-1]
        query, output = layer.self_attn.q_proj, layer.self_attn.out_proj
        return [(query, query), (output, output), (layer.fc1, layer.fc2)]

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


class Blip2Seq2Seq(Blip2):
    """`Blip2ForConditionalGeneration` with an encoder-decoder language model (T5).

    The encoder reads image and prompt, the decoder writes the answer: the tokens that are supervised. So there is a
    hidden state before each of these and nowhere else, and batches need `labels`.
    """

    packs = False  # rows of one image have prompts of their own, and these are what is read along with it

    def hidden_states(self, features: list[Tensor], batch: Batch) -> Tensor:
        t5 = self.model.language_model
        labels = batch["labels"]
        answered = labels != IGNORE
        prompt = batch["attention_mask"] * ~answered
        seen = t5.encoder(inputs_embeds=self._embeds(features, batch), attention_mask=prompt).last_hidden_state
        rows, columns = answered.nonzero(as_tuple=True)
        places = answered.cumsum(1)[rows, columns]  # in the decoder, which begins with a token of its own
        decoded = labels.new_full((len(labels), int(places.max()) + 1), t5.config.pad_token_id)
        decoded[:, 0] = t5.config.decoder_start_token_id
        decoded[rows, places] = labels[rows, columns]
        states = t5.decoder(
            input_ids=decoded[:, :-1], encoder_hidden_states=seen, encoder_attention_mask=prompt
        ).last_hidden_state
        if t5.config.scale_decoder_outputs:  # with tied embeddings
            states = states * t5.model_dim**-0.5
        hidden = states.new_zeros(*labels.shape, states.shape[-1])
        hidden[rows, columns - 1] = states[rows, places - 1]
        return hidden

    def _predicting_part(self, batch: Batch) -> Batch:
        return batch  # the decoder has its own tokens

    def _last_layer(self) -> list[Span]:
        return []  # hidden states are those of the prompt and the answer, the decoder's of the answer alone

    def _generate(self, batch: Batch, **options: Any) -> Tensor:
        ids = super()._generate(batch, **options)
        return ids[:, 1:]  # without the decoder's first token


def _complete(model: nn.Module, processor: Any) -> list[str]:
    """Give model and processor the same placeholder and the same number of them; what was missing, in lines.

    Checkpoints from before transformers wrote placeholders lack them, and the image would be ignored without a word.
    """
    config, notes = model.config, []
    if not processor.num_query_tokens:
        processor.num_query_tokens = config.num_query_tokens
        notes.append(f"the processor lacks num_query_tokens; set to the model's {config.num_query_tokens}")
    if config.image_token_id is None:  # the processor has added the token to its tokenizer
        config.image_token_id = processor.tokenizer.convert_tokens_to_ids(str(processor.image_token))
        if config.image_token_id >= model.get_input_embeddings().num_embeddings:
            model.resize_token_embeddings(len(processor.tokenizer))
        notes.append(f"the configuration lacks image_token_index; set to {config.image_token_id}")
    return notes
