"""Where in its image a model looks as it says each token of an answer.

    git              text to the image tokens that stand before it
    chat             text to the placeholders of its image: patches, merged as the model merges them
    encoder_decoder  cross-attention to the image encoder's tokens
    blip2            text to the query tokens, and from each of them the Q-Former's cross-attention to the patches

Attention is averaged over all heads and all layers (of the language model; of the Q-Former), without a prefix that an
attachment puts in front. What goes to the encoder's own [CLS] token has no place in the image and is left out, so that
a map sums to the share of the attention that lies on the image's patches.
"""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vlm_models.errors import ModelError
from vlm_models.generation import Answer, answered

if TYPE_CHECKING:
    from vlm_models.vlm import VLM, Batch


@torch.no_grad()
def attention_maps(vlm: "VLM", batch: "Batch", answers: Sequence[Answer]) -> list[Tensor]:
    """Maps [tokens, height, width] in float32 of each row's answer to its prompt, on the image's grid of patches.

    One pass over prompts and answers, in evaluation mode, with attention that keeps its weights ("eager").

    Raises:
        ModelError: for a batch without pixels, and for models of which no grid of patches is known.
    """
    if "pixel_values" not in batch:
        raise ModelError("attention maps need the pixels of the images; give a batch without cached features")
    whole, places = answered(batch, [answer.token_ids for answer in answers])
    index = batch["image_index"].tolist()
    was_training = vlm.training
    vlm.eval()
    try:
        with _recorded(vlm.model, ("qformer",), "crossattention") as qformer:
            features = vlm.encode_images(batch)
        kind = "crossattention" if vlm.family == "encoder_decoder" else ""
        with _recorded(vlm.model, vlm.language_parts, kind) as layers:
            vlm.hidden_states(features, whole)
    finally:
        vlm.train(was_training)
    weights = torch.stack(layers).mean(0)  # [rows, queries, keys]
    before = weights.shape[1] - whole["input_ids"].shape[1]  # GIT's images are queries too
    of_tokens = weights.gather(1, (places + before)[..., None].expand(-1, -1, weights.shape[-1]))
    placeholders = vlm._placeholders(whole)
    maps = []
    for row, (image, answer) in enumerate(zip(index, answers, strict=True)):
        seen = of_tokens[row, : len(answer.token_ids)]
        seen = seen[:, : len(features[image])] if placeholders is None else seen[:, placeholders[row]]
        if qformer:
            seen = seen @ torch.stack(qformer).mean(0)[image]
        height, width = _grid(vlm, batch, image)
        maps.append(seen[:, seen.shape[1] - height * width :].unflatten(1, (height, width)))
    return maps


def words_of(vlm: "VLM", answer: Answer) -> list[tuple[str, list[int]]]:
    """The words of an answer, each with the numbers of its tokens; special tokens and spaces belong to none."""
    texts = [
        vlm.processor.tokenizer.decode(answer.token_ids[:length], skip_special_tokens=True).strip()
        for length in range(len(answer.token_ids) + 1)
    ]
    words = texts[-1].split()
    tokens: list[list[int]] = [[] for _ in words]
    for token, (before, text) in enumerate(itertools.pairwise(texts)):
        if text != before:
            tokens[min(len(text.split()), len(words)) - 1].append(token)
    return [(word, its_tokens) for word, its_tokens in zip(words, tokens, strict=True) if its_tokens]


def _grid(vlm: "VLM", batch: "Batch", image: int) -> tuple[int, int]:
    """Height and width of an image in patches, or in what the model merges them to."""
    config = vlm.model.config
    if vlm.family == "chat":
        if "image_grid_thw" not in batch:
            raise ModelError(
                f"{vlm.name}: no attention maps for a {config.model_type!r} model, whose grid is not known"
            )
        _, height, width = batch["image_grid_thw"][image].tolist()
        merged = config.vision_config.spatial_merge_size
        return height // merged, width // merged
    patch = (config.encoder if vlm.family == "encoder_decoder" else config.vision_config).patch_size
    height, width = batch["pixel_values"].shape[-2:]
    return height // patch, width // patch


@contextmanager
def _recorded(model: nn.Module, parts: tuple[str, ...], kind: str) -> Iterator[list[Tensor]]:
    """The attention weights [rows, queries, keys] of each layer of these parts, heads averaged, that run meanwhile.

    `kind` is in the names of the attention modules that count.
    """
    inside = {name: module for name, module in model.named_modules() if name.startswith(parts)}
    found: list[Tensor] = []

    def record(module: nn.Module, args: tuple, output: object) -> None:
        if isinstance(output, tuple) and isinstance(output[1], Tensor):
            found.append(output[1].float().mean(1))

    hooks = [
        module.register_forward_hook(record)
        for name, module in inside.items()
        if type(module).__name__.endswith("Attention") and kind in name
    ]
    configs = {id(module.config): module.config for module in inside.values() if hasattr(module, "config")}.values()
    set_to = [config._attn_implementation for config in configs]
    for config in configs:
        config._attn_implementation = "eager"
    try:
        yield found
    finally:
        for config, implementation in zip(configs, set_to, strict=True):
            config._attn_implementation = implementation
        for hook in hooks:
            hook.remove()
