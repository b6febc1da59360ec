"""LoRA as Hugging Face PEFT writes it down.

A tensor `layers.0.fc.lora_A` of ours is `base_model.model.layers.0.fc.lora_A.weight` there, with the same shape. What
is trained beside it goes by its own name; a bias of a layer with LoRA has `base_layer` in it.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import AdapterError, check_keys
from ..lora import DoRALinear, LoRA, LoRAConv2d, LoRAEmbedding, LoRALinear
from ..lora.method import fits_lora
from ..targets import exact_targets, matcher
from ..trained import named_slots
from ..tree import bare, named_modules, walk
from .lora_config import config_of, is_narrowed, method_of, saved_whole, to_save

_PREFIX = "base_model.model."
# By the kind of module: our name of a tensor, and the end of its key.
_LINEAR = {"lora_A": ".lora_A.weight", "lora_B": ".lora_B.weight"}
_DORA = {**_LINEAR, "magnitude": ".lora_magnitude_vector"}
_EMBEDDING = {"lora_A": ".lora_embedding_A", "lora_B": ".lora_embedding_B"}
_ENDS = {*_DORA.values(), *_EMBEDDING.values()}


def fits(attachment) -> bool:
    """Whether PEFT computes the same from what it can write down of this attachment."""
    layers = _layers_of(attachment)
    whole = _whole(attachment.method, attachment.model)
    odd = any(isinstance(part, LoRAConv2d) and _beyond_peft(bare(part)) for part in layers.values())
    return not odd and whole is not None and not layers.keys() & _inside(whole, layers)


def write(attachment, base_model: str | None) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Configuration and tensors for PEFT. `fits` must be true. PiSSA and OLoRA become plain LoRA of twice the rank."""
    method, model, layers = attachment.method, attachment.model, _layers_of(attachment)
    tensors: dict[str, Tensor] = {}
    for path, part in layers.items():
        own = {name: parameter.detach() for name, parameter in part.adapter_parameters().items()}
        if isinstance(part, LoRALinear):
            own["lora_A"], own["lora_B"] = (factor.detach() for factor in part.factors())
        tensors |= {_PREFIX + path + _ends(part)[name]: tensor for name, tensor in own.items()}
    whole, also = _whole(method, model), attachment.modules.get("")
    places = _places(model)
    for name, parameter in also.adapter_parameters().items() if also else ():
        inside = [place for place in places[name] if _inside(whole, [place])]
        for place in inside or [name]:  # PEFT copies modules apart from each other: each gets what they share
            tensors[_key(place, layers)] = parameter.detach().clone()
    return config_of(method, model, layers, whole, base_model), tensors


def method_in(config: dict[str, Any], tensors: Mapping[str, Tensor]) -> LoRA:
    """The method that a file describes, for any model with these names. Raises AdapterError."""
    paths = {_layer_of(key): None for key in tensors}
    method = method_of(config, [path for path in paths if path is not None])
    parts = [key.removeprefix(_PREFIX).split(".") for key in tensors]
    names = dict.fromkeys(".".join(part[:end]) for part in parts for end in range(1, len(part)))
    return replace(method, train_also=tuple(saved_whole(method.train_also, names)))


def read(config: dict[str, Any], tensors: Mapping[str, Tensor], model: nn.Module, strict: bool):
    """The method for this model, and its tensors by our names. Raises AdapterError."""
    found, expected = _layers_in(config, model, tensors)
    method = method_of(config, found or expected)
    for path, module in found.items():
        if isinstance(bare(module), nn.Conv2d) and _beyond_peft(bare(module)):
            raise AdapterError(f"{path}: PEFT's LoRA has no dilation and pads with zeros, unlike this convolution")
    whole = saved_whole(method.train_also, named_modules(model))
    method = replace(method, train_also=exact_targets(model, whole) if whole else ())
    keys = {path: _keys(path, module, method.dora) for path, module in {**found, **expected}.items()}
    also = _also_in(method, model, found or expected, tensors, bool(config.get("ensure_weight_tying")))
    if strict or not found:
        wanted = {*also.values(), *(key for path in expected for key in keys[path].values())}
        check_keys(tensors.keys() - _repeated(model, tensors, also, wanted), wanted, "adapter_model.safetensors")
    names = {f"{path}.{name}": key for path in found for name, key in keys[path].items()} | also
    state = {name: tensors[key] for name, key in names.items() if key in tensors}
    return replace(method, targets=exact_targets(model, found)), state


def _layers_of(attachment) -> dict[str, nn.Module]:
    return {path: part for path, part in attachment.modules.items() if path}


def _ends(part: nn.Module) -> dict[str, str]:
    return _EMBEDDING if isinstance(part, LoRAEmbedding) else _DORA if isinstance(part, DoRALinear) else _LINEAR


def _keys(path: str, module: nn.Module, dora: bool) -> dict[str, str]:
    """Our names of a module's tensors, and their keys."""
    ends = _EMBEDDING if isinstance(bare(module), nn.Embedding) else _DORA if dora else _LINEAR
    return {name: _PREFIX + path + end for name, end in ends.items()}


def _key(name: str, layers: Collection[str]) -> str:
    """The key of a parameter of the model itself."""
    path, _, slot = name.rpartition(".")
    return f"{_PREFIX}{path}.base_layer.{slot}" if path in layers else _PREFIX + name


def _layer_of(key: str) -> str | None:
    """The path of the layer that a key in the file belongs to, or None for a key that is not one of LoRA's."""
    for end in _ENDS:
        if key.startswith(_PREFIX) and key.endswith(end):
            return key[len(_PREFIX) : -len(end)]
    return None


def _layers_in(config: dict[str, Any], model: nn.Module, keys: Collection[str]) -> tuple[dict, dict]:
    """The model's layers that the file has keys for, and those that it should have keys for."""
    layers = {name: module for name, module in named_modules(model).items() if fits_lora(module)}
    paths = {_layer_of(key) for key in keys}
    found = {name: module for name, module in layers.items() if name in paths}
    if is_narrowed(config):
        return found, found
    targets = config["target_modules"]
    matching = matcher("re:" + targets if isinstance(targets, str) else targets)
    whole = saved_whole(config.get("modules_to_save") or (), named_modules(model))
    wanted = {name for name in layers if matching(name)} - _inside(whole, layers)
    return found, {name: module for name, module in layers.items() if name in found or name in wanted}


def _beyond_peft(convolution: nn.Conv2d) -> bool:
    """PEFT gives A the kernel, stride and padding of the convolution, and nothing else."""
    return convolution.padding_mode != "zeros" or {*convolution.dilation} != {1}


def _places(model: nn.Module) -> dict[str, list[str]]:
    """All names of every parameter, by its first: several where modules share it."""
    places: dict[int, list[str]] = {}
    for name, _, _, parameter in named_slots(model):
        places.setdefault(id(parameter), []).append(name)
    return {names[0]: names for names in places.values()}


def _inside(whole: Collection[str], names: Collection[str]) -> set[str]:
    return {name for name in names if f"{name}.".startswith(tuple(f"{path}." for path in whole))}


def _whole(method: LoRA, model: nn.Module) -> list[str] | None:
    """PEFT's `modules_to_save`: the modules trained whole, and those that share their parameters."""
    whole = method.trained_whole(model)
    shared = [names for names in _places(model).values() if _inside(whole, names)]
    sharing = {name.rpartition(".")[0] for names in shared for name in names} - _inside(whole, named_modules(model))
    return to_save(method.train_also, [*whole, *sharing], [name for name, _ in walk(model)])


def _also_in(
    method: LoRA, model: nn.Module, layers: Collection[str], tensors: Mapping[str, Tensor], tied: bool
) -> dict[str, str]:
    """Our names of what is trained besides, and their keys. `tied`: PEFT kept together what modules share."""
    names = {*method.also_trained(model, layers)}
    whole = method.trained_whole(model)
    keys: dict[str, str] = {}
    for first, places in _places(model).items():
        trained = [name for name in places if name in names]
        if not trained:
            continue
        given = [key for key in (_key(name, layers) for name in (places if tied else trained)) if key in tensors]
        apart = len(trained) < len(places) and not tied and _inside(whole, trained)
        if apart or any(not torch.equal(tensors[key], tensors[given[0]]) for key in given[1:]):
            raise AdapterError(
                f"modules_to_save: PEFT trained {', '.join(trained)} apart from what shares it in this model "
                f"({', '.join(places)}); train with ensure_weight_tying=True, or untie them in the model first"
            )
        keys[first] = given[0] if given else _key(first, layers)
    return keys


def _repeated(
    model: nn.Module, tensors: Mapping[str, Tensor], also: Mapping[str, str], wanted: Collection[str]
) -> set[str]:
    """Keys of what is known without them: the model's own weights, which PEFT adds where embeddings are targets, and
    what several modules share. Raises AdapterError if they are others."""
    known = {name: parameter.detach() for name, _, _, parameter in named_slots(model)}
    for first, places in _places(model).items():
        if also.get(first) in tensors:
            known |= dict.fromkeys(places, tensors[also[first]])
    keys = set()
    for key in tensors.keys() - wanted:
        name = key.removeprefix(_PREFIX).replace(".base_layer.", ".")
        if name not in known:
            continue
        here, there = known[name].cpu(), tensors[key]
        if here.shape != there.shape or not torch.equal(here, there.to(here.dtype)):
            raise AdapterError(f"{key}: the adapter was trained on another {name}; load or resize that base first")
        keys.add(key)
    return keys
