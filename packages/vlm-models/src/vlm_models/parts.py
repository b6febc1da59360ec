"""An image captioner from parts: a ViT of timm or torchvision, a GPT-2 state dict, and GPT-2's vocabulary.

    vit = timm.create_model("vit_base_patch16_224", pretrained=True)
    vlm = from_parts(vit, "decoder_model.bin", "encoder.json", "vocab.bpe")

What comes out is a `VisionEncoderDecoderModel` like any other: it can be trained, saved and loaded. GPT-2 has never
seen an image, so its cross-attention is new and has to be trained.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPT2Tokenizer,
    VisionEncoderDecoderModel,
    ViTConfig,
    ViTImageProcessor,
    ViTModel,
)

from vlm_models.device import choose_device, choose_dtype
from vlm_models.errors import ModelError
from vlm_models.families import EncoderDecoder
from vlm_models.hub import reading
from vlm_models.pair import ImageTextPair

State = Mapping[str, Tensor]
END = "<|endoftext|>"
HALF = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)  # mean and standard deviation that timm's ViTs are mostly trained with
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # and torchvision's

# Names in the library: names in transformers' ViT. QKV stands for the three projections, which lie in one tensor.
TIMM = {
    r"cls_token": "embeddings.cls_token",
    r"pos_embed": "embeddings.position_embeddings",
    r"patch_embed\.proj": "embeddings.patch_embeddings.projection",
    r"blocks\.(\d+)\.norm1": r"layers.\1.layernorm_before",
    r"blocks\.(\d+)\.attn\.qkv": r"layers.\1.attention.QKV",
    r"blocks\.(\d+)\.attn\.proj": r"layers.\1.attention.o_proj",
    r"blocks\.(\d+)\.norm2": r"layers.\1.layernorm_after",
    r"blocks\.(\d+)\.mlp\.(fc1|fc2)": r"layers.\1.mlp.\2",
    r"norm": "layernorm",
}
TORCHVISION = {
    r"class_token": "embeddings.cls_token",
    r"encoder\.pos_embedding": "embeddings.position_embeddings",
    r"conv_proj": "embeddings.patch_embeddings.projection",
    r"encoder\.layers\.encoder_layer_(\d+)\.ln_1": r"layers.\1.layernorm_before",
    r"encoder\.layers\.encoder_layer_(\d+)\.self_attention\.in_proj": r"layers.\1.attention.QKV",
    r"encoder\.layers\.encoder_layer_(\d+)\.self_attention\.out_proj": r"layers.\1.attention.o_proj",
    r"encoder\.layers\.encoder_layer_(\d+)\.ln_2": r"layers.\1.layernorm_after",
    r"encoder\.layers\.encoder_layer_(\d+)\.mlp\.(?:0|linear_1)": r"layers.\1.mlp.fc1",
    r"encoder\.layers\.encoder_layer_(\d+)\.mlp\.(?:3|linear_2)": r"layers.\1.mlp.fc2",
    r"encoder\.ln": "layernorm",
}


def from_parts(
    encoder: nn.Module | State | str | Path,
    decoder: State | str | Path,
    vocabulary: str | Path,
    merges: str | Path,
    encoder_heads: int | None = None,
    decoder_heads: int | None = None,
    device: str = "auto",
    dtype: str = "auto",
) -> EncoderDecoder:
    """A model that captions, in evaluation mode, from an image encoder and a text decoder.

    Args:
        encoder: a ViT of timm or torchvision, its state dict, or a file that holds it.
        decoder: a GPT-2 state dict in Conv1D layout (weights [inputs, outputs]), or a file that holds it.
        vocabulary, merges: GPT-2's `encoder.json` and `vocab.bpe`.
        encoder_heads, decoder_heads: attention heads, which weights do not tell; by default width / 64, as in all
            published sizes. A module tells its own.

    Raises:
        ModelError: the parts are not what they should be; the message names the first weight that is wrong.
    """
    chosen_device = choose_device(device)
    vit, (mean, std) = _vit(encoder, encoder_heads)
    tokenizer = _tokenizer(vocabulary, merges)
    gpt2 = _gpt2(_state(decoder), decoder_heads, tokenizer)
    if len(tokenizer) > gpt2.config.vocab_size:
        raise ModelError(f"{vocabulary} has {len(tokenizer)} tokens, the decoder {gpt2.config.vocab_size}; use its own")
    model = VisionEncoderDecoderModel(encoder=vit, decoder=gpt2)
    for config in (model.config, model.generation_config, gpt2.config):
        config.decoder_start_token_id = config.bos_token_id = tokenizer.bos_token_id
        config.eos_token_id = config.pad_token_id = tokenizer.eos_token_id
    side = vit.config.image_size
    images = ViTImageProcessor(size={"height": side, "width": side}, image_mean=list(mean), image_std=list(std))
    vlm = EncoderDecoder(model, ImageTextPair(images, tokenizer), "from parts")
    vlm.notes = [
        "the decoder's cross-attention is new: it has to be trained",
        f"images are resized to {side} x {side}, normalized with mean {mean} and standard deviation {std}",
    ]
    return vlm.to(chosen_device, choose_dtype(dtype, chosen_device)).eval()


def _state(source: State | str | Path) -> State:
    if isinstance(source, Mapping):
        return source
    with reading(str(source)):
        found = torch.load(source, map_location="cpu", weights_only=True)
    if not isinstance(found, Mapping):
        raise ModelError(f"{source} holds a {type(found).__name__}; expected a state dict")
    return found


def _vit(encoder: nn.Module | State | str | Path, heads: int | None) -> tuple[ViTModel, tuple]:
    """The ViT in transformers' class, and mean and standard deviation of the images it takes."""
    module = encoder if isinstance(encoder, nn.Module) else None
    state = module.state_dict() if module is not None else _state(encoder)
    if "blocks.0.attn.qkv.weight" in state:
        names, normalized = TIMM, HALF
    elif "encoder.layers.encoder_layer_0.self_attention.in_proj_weight" in state:
        names, normalized = TORCHVISION, IMAGENET
    else:
        raise ModelError(f"the encoder is no ViT of timm or torchvision; it begins with {next(iter(state), 'nothing')}")
    weights = _renamed(state, names)
    projection = weights["embeddings.patch_embeddings.projection.weight"]
    width, channels, patch, _ = projection.shape
    grid = round((weights["embeddings.position_embeddings"].shape[1] - 1) ** 0.5)
    if module is not None:
        layers = module.blocks if names is TIMM else module.encoder.layers
        heads = layers[0].attn.num_heads if names is TIMM else layers[0].self_attention.num_heads
        trained_with = getattr(module, "pretrained_cfg", {})
        if {"mean", "std"} <= trained_with.keys():
            normalized = tuple(trained_with["mean"]), tuple(trained_with["std"])
    config = ViTConfig(
        hidden_size=width,
        num_hidden_layers=1 + max(int(key.split(".")[1]) for key in weights if key.startswith("layers.")),
        num_attention_heads=heads or max(1, width // 64),
        intermediate_size=len(weights["layers.0.mlp.fc1.weight"]),
        image_size=grid * patch,
        patch_size=patch,
        num_channels=channels,
        layer_norm_eps=1e-6,
        qkv_bias="layers.0.attention.q_proj.bias" in weights,
    )
    return _filled(ViTModel(config, add_pooling_layer=False), weights, "encoder"), normalized


def _renamed(state: State, names: dict[str, str]) -> dict[str, Tensor]:
    """The weights under transformers' names; without the classification head."""
    renamed = {}
    for key, tensor in state.items():
        stem, _, kind = key.rpartition(".") if key.endswith((".weight", ".bias")) else (key, "", "")
        if key.endswith(("in_proj_weight", "in_proj_bias")):
            stem, _, kind = key.rpartition("_")
        if stem.startswith("head"):
            continue
        name = next((re.sub(one, other, stem) for one, other in names.items() if re.fullmatch(one, stem)), stem)
        name = f"{name}.{kind}" if kind else name
        if ".QKV." in name:
            for projection, part in zip(("q_proj", "k_proj", "v_proj"), tensor.chunk(3), strict=True):
                renamed[name.replace("QKV", projection)] = part
        else:
            renamed[name] = tensor
    return renamed


def _gpt2(state: State, heads: int | None, tokenizer: GPT2Tokenizer) -> GPT2LMHeadModel:
    """GPT-2 with cross-attention; what the state dict has of it is filled in."""
    weights = {
        key.removeprefix("transformer."): tensor
        for key, tensor in state.items()
        if key != "lm_head.weight" and not key.endswith((".attn.bias", ".attn.masked_bias"))  # tied; causal masks
    }
    if "wte.weight" not in weights or "h.0.attn.c_attn.weight" not in weights:
        raise ModelError(f"the decoder is no GPT-2 state dict; it begins with {next(iter(state), 'nothing')}")
    vocabulary, width = weights["wte.weight"].shape
    if weights["h.0.attn.c_attn.weight"].shape != (width, 3 * width):
        raise ModelError(
            "the decoder's weights are [outputs, inputs]; transpose c_attn, c_proj and c_fc (Conv1D layout)"
        )
    config = GPT2Config(
        vocab_size=vocabulary,
        n_positions=len(weights["wpe.weight"]),
        n_embd=width,
        n_layer=1 + max(int(key.split(".")[1]) for key in weights if key.startswith("h.")),
        n_head=heads or max(1, width // 64),
        n_inner=weights["h.0.mlp.c_fc.weight"].shape[1],
        add_cross_attention=True,
        is_decoder=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = GPT2LMHeadModel(config)
    _filled(model.transformer, weights, "decoder", new=("crossattention", "ln_cross_attn"))
    return model


def _filled(module: nn.Module, weights: State, part: str, new: tuple[str, ...] = ()) -> nn.Module:
    """The module with these weights; all there are, and all that it has but those that are `new`."""
    expected = module.state_dict()
    missing = [key for key in expected if key not in weights and not any(one in key for one in new)]
    for problem, keys in (("lacks", missing), ("has an unknown", [key for key in weights if key not in expected])):
        if keys:
            raise ModelError(f"the {part} {problem} weight {keys[0]!r}; expected a plain ViT and GPT-2")
    for key, tensor in weights.items():
        if tensor.shape != expected[key].shape:
            shapes = f"{list(tensor.shape)}, expected {list(expected[key].shape)}"
            raise ModelError(f"the {part}'s weight {key!r} is {shapes}; expected a plain ViT and GPT-2")
    module.load_state_dict(dict(weights), strict=False)
    return module


def _tokenizer(vocabulary: str | Path, merges: str | Path) -> GPT2Tokenizer:
    with reading(f"{vocabulary}, {merges}"):
        ids = json.loads(Path(vocabulary).read_text(encoding="utf-8"))
        lines = Path(merges).read_text(encoding="utf-8").splitlines()
    pairs = [tuple(line.split()) for line in lines if line and not line.startswith("#version")]
    if END not in ids:
        raise ModelError(f"{vocabulary} lacks {END!r}; expected GPT-2's encoder.json")
    return GPT2Tokenizer(vocab=ids, merges=pairs, pad_token=END)
