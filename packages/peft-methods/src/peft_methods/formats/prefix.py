"""Prefix tuning as Hugging Face PEFT writes it down: one tensor `prompt_embeddings` [length, layers · 2 · width].

For every layer of the decoder it has keys and then values, `width` = heads · head_dim each, and tokens are counted from
`length` on. So it is the format of a prefix that has `shift_positions`, no re-parameterisation, and one shape in every
layer of a model that is one decoder; others are written in our own. GIT's are among them: PEFT puts the prefix into the
cache, and then GIT hides patches of an image from each other.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import AdapterError, check_keys
from ..prefix import Prefix
from ..prefix.injection import is_git
from ..prefix.sites import causal_attention, shape_of
from ..targets import TargetError
from ..tree import bare

_KEY = "prompt_embeddings"
_KINDS = "keys", "values"
_CARRIED = {"peft_type", "num_virtual_tokens", "num_layers", "token_dim", "num_attention_heads"}
# `prefix_projection`: the tensor is what the projection made.
_WITHOUT_EFFECT = {
    "auto_mapping", "base_model_name_or_path", "encoder_hidden_size", "inference_mode", "init_weights", "peft_version",
    "prefix_projection", "revision", "runtime_config", "task_type",
}  # fmt: skip


def fits(attachment) -> bool:
    """Whether PEFT computes the same from what it can write down of this attachment."""
    method = attachment.method
    if not isinstance(method, Prefix) or not method.shift_positions or method.reparameterization is not None:
        return False
    try:
        layers = _layers(attachment.model)
    except (AdapterError, TargetError):
        return False
    carrying = {name for name, part in attachment.modules.items() if part.adapter_parameters()}
    return carrying == {*layers}


def write(attachment, base_model: str | None) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Configuration and tensor for PEFT. `fits` must be true."""
    state = {name: parameter.detach() for name, parameter in attachment.named_parameters()}
    layers = _layers(attachment.model)
    states = [state[f"{name}.prefix.{kind}"] for name in layers for kind in _KINDS]
    heads, head_dim = states[0].shape[1:]
    config = {
        "peft_type": "PREFIX_TUNING",
        "task_type": "CAUSAL_LM",  # without it peft loads the file and leaves the prefix out
        "base_model_name_or_path": base_model,
        "inference_mode": True,
        "num_virtual_tokens": attachment.method.length,
        "num_layers": len(layers),
        "num_attention_heads": heads,
        "token_dim": heads * head_dim,
        "num_transformer_submodules": 1,
        "prefix_projection": False,
        "encoder_hidden_size": heads * head_dim,
        "modules_to_save": None,
    }
    return config, {_KEY: torch.stack(states, dim=1).flatten(1)}


def method_in(config: dict[str, Any], tensors: Mapping[str, Tensor]) -> Prefix:
    """The method that a file describes, for any model. Raises AdapterError."""
    if (submodules := config.get("num_transformer_submodules", 1)) not in (None, 1):
        raise AdapterError(f"num_transformer_submodules={submodules}: prefixes of encoder-decoders are not supported")
    for field in sorted(config.keys() - _CARRIED - _WITHOUT_EFFECT - {"num_transformer_submodules"}):
        if config[field]:
            raise AdapterError(f"{field}={config[field]!r}: this option of peft is not supported; train without it")
    if _KEY not in tensors:
        check_keys(tensors, [_KEY], "adapter_model.safetensors")
    return Prefix(length=len(tensors[_KEY]), shift_positions=True)


def read(config: dict[str, Any], tensors: Mapping[str, Tensor], model: nn.Module, strict: bool):
    """The method for this model, and its tensors by our names. Raises AdapterError."""
    method = method_in(config, tensors)
    if strict:
        check_keys(tensors, [_KEY], "adapter_model.safetensors")
    try:
        layers = _layers(model)
    except TargetError as error:
        raise AdapterError(str(error)) from None
    heads, head_dim = shape_of(causal_attention(model)[layers[0]])
    prompt = tensors[_KEY]
    if prompt.ndim != 2 or prompt.shape[1] != len(layers) * 2 * heads * head_dim:
        raise AdapterError(
            f"{_KEY}: shape {list(prompt.shape)} where [length, {len(layers)} layers * 2 * {heads} heads * {head_dim}] "
            "is expected"
        )
    names = [f"{name}.prefix.{kind}" for name in layers for kind in _KINDS]
    states = prompt.view(len(prompt), len(names), heads, head_dim).unbind(1)
    return method, dict(zip(names, states, strict=True))


def _layers(model: nn.Module) -> list[str]:
    """Names of the decoder's attention modules in the order of its cache. Raises AdapterError if PEFT has no words."""
    attention = {name: bare(module) for name, module in causal_attention(model).items()}
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        raise AdapterError("PEFT's prefixes of encoder-decoder models are not supported")
    if any(is_git(module) for module in attention.values()):
        raise AdapterError("with PEFT's prefixes GIT masks images in another way; train the prefix here")
    layers = sorted(attention, key=lambda name: getattr(attention[name], "layer_idx", None) or 0)
    indices = [getattr(attention[name], "layer_idx", None) for name in layers]
    if indices != list(range(len(layers))) or len({shape_of(module) for module in attention.values()}) > 1:
        raise AdapterError("PEFT's prefixes need one decoder with a cache, whose layers have keys of one shape")
    return layers
