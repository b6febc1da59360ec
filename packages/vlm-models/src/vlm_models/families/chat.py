"""Chat models with images in the conversation: Qwen2-VL, Qwen2.5-VL, Qwen3-VL, SmolVLM, Idefics3, LLaVA-OneVision,
Gemma 3 and InternVL.

They are built alike: `model.model` holds the language model and, beside it, what turns an image into embeddings that
replace its placeholders. Where they differ, their own `get_image_features` and forward pass are used: positions in
time, height and width (Qwen), features for deeper layers (Qwen3-VL), image tokens that see each other (Gemma 3).

Wang et al. 2024, "Qwen2-VL: Enhancing Vision-Language Model's Perception of the World at Any Resolution", Bai et al.
2025 (Qwen2.5-VL and Qwen3-VL), Marafioti et al. 2025 (SmolVLM), Laurençon et al. 2024 (Idefics3), Li et al. 2024
(LLaVA-OneVision), Gemma Team 2025 (Gemma 3), Zhu et al. 2025 (InternVL3).
"""

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from vlm_models.errors import ModelError
from vlm_models.families.mrope import mrope_positions
from vlm_models.last_layer import Span
from vlm_models.vlm import VLM, Batch, begins

# What their `get_image_features` take of each distinct image: Qwen's grid of patches, SmolVLM's padding, LLaVA's sizes.
IMAGE_INPUTS = ("pixel_values", "image_grid_thw", "pixel_attention_mask", "image_sizes")
MROPE = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")  # model types whose positions are computed here
STACKED = ("gemma3", "internvl")  # model types whose image features are one tensor [tiles, tokens, dim], not a list


class Chat(VLM):
    """A model of `AutoModelForImageTextToText` with a chat template.

    Beside `IMAGE_INPUTS` a batch may hold `image_tiles` [images]: how many rows of `pixel_values` each image is cut
    into (InternVL, Gemma 3). Without it each is one.
    """

    family = "chat"

    def __init__(self, model: nn.Module, processor: Any, name: str):
        super().__init__(model, processor, name)
        inner = model.model
        parts = [*inner._parameters, *inner._modules]
        language = next(part for part in parts if getattr(inner, part) is inner.get_decoder())
        self.language_parts = (f"model.{language}",)
        self.vision_parts = tuple(f"model.{part}" for part in parts if part != language)
        taken = inspect.signature(inner.forward).parameters
        self._types = next((one for one in ("mm_token_type_ids", "token_type_ids") if one in taken), None)
        # The mask of packed rows replaces the model's own: not where image tokens see each other or a layer a window.
        layers = getattr(model.config.get_text_config(), "layer_types", None) or []
        self.packs = self._types != "token_type_ids" and "sliding_attention" not in layers

    @property
    def head(self) -> nn.Module:
        return self.model.get_output_embeddings()

    def _encode(self, batch: Batch) -> list[Tensor]:
        """Features [tokens, dim] of each image; [tokens, levels * dim] where deeper layers get features too."""
        inputs = {name: batch[name] for name in IMAGE_INPUTS if name in batch}
        output = self.model.model.get_image_features(**inputs, return_dict=True)
        features = output.pooler_output
        if "image_tiles" in batch:
            features = [tiles.flatten(0, 1) for tiles in features.split(batch["image_tiles"].tolist())]
        deeper = getattr(output, "deepstack_features", None) or []
        return [torch.cat(levels, dim=-1) for levels in zip(features, *deeper, strict=True)]

    def hidden_states(self, features: list[Tensor], batch: Batch) -> Tensor:
        images = {}
        if begins(batch):
            images["mm_encoder_outputs"] = {"image": self._image_output(features, batch)}
            if self._types:
                images[self._types] = self._placeholders(batch).long()
        return self.model.model(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            position_ids=self.positions_of(batch),
            past_key_values=batch.get("cache"),
            use_cache="cache" in batch,
            **images,
        ).last_hidden_state

    def _image_output(self, features: list[Tensor], batch: Batch) -> BaseModelOutputWithPooling:
        """What `get_image_features` returns, for the images of the rows one after the other."""
        images = torch.cat([features[i] for i in batch["image_index"].tolist()])
        placeholders = int(self._placeholders(batch).sum())
        if len(images) != placeholders:
            raise ModelError(f"{self.name}: {placeholders} image placeholders for {len(images)} image tokens")
        first, *deeper = images.split(self.model.get_input_embeddings().weight.shape[1], dim=-1)
        output = BaseModelOutputWithPooling(
            pooler_output=first[None] if self.model.config.model_type in STACKED else [first]
        )
        output.deepstack_features = [[level] for level in deeper]
        return output

    def _placeholders(self, batch: Batch) -> Tensor:
        return batch["input_ids"] == self.model.config.image_token_id

    def _last_layer(self) -> list[Span]:
        layer = self.model.model.get_decoder().layers[-1]
        return [(one, one) for one in (layer.self_attn.q_proj, layer.self_attn.o_proj, layer.mlp)]

    def _positions(self, batch: Batch) -> Tensor:
        inner, images = self.model.model, self._placeholders(batch)
        if not hasattr(inner, "get_rope_index"):
            return super()._positions(batch)
        grids = batch["image_grid_thw"][batch["image_index"]]
        if self.model.config.model_type in MROPE:
            merged = self.model.config.vision_config.spatial_merge_size
            return mrope_positions(images, batch["attention_mask"], grids // grids.new_tensor([1, merged, merged]))
        mask = batch["attention_mask"]
        return inner.get_rope_index(
            batch["input_ids"], mm_token_type_ids=images.long(), image_grid_thw=grids, attention_mask=mask
        )[0]

    def _generate(self, batch: Batch, **options: Any) -> Tensor:
        index = batch["image_index"]
        inputs = {name: batch[name][index] for name in IMAGE_INPUTS if name in batch}
        if "image_grid_thw" in batch or "image_tiles" in batch:
            counts = batch["image_grid_thw"].prod(-1) if "image_grid_thw" in batch else batch["image_tiles"]
            pixels = batch["pixel_values"].split(counts.tolist())
            inputs["pixel_values"] = torch.cat([pixels[i] for i in index.tolist()])
        if "image_tiles" in batch and options["num_beams"] > 1:
            raise ModelError(f"{self.name}: transformers searches no beams over images cut into tiles; use num_beams=1")
        if self._types:
            inputs[self._types] = self._placeholders(batch).long()
        ids = self.model.generate(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            pad_token_id=self.processor.tokenizer.pad_token_id,
            **inputs,
            **options,
        )
        return ids[:, batch["input_ids"].shape[1] :]
