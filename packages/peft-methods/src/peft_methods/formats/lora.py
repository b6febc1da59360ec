"""LoRA as Hugging Face PEFT writes it down.

A tensor `layers.0.fc.lora_A` of ours is `base_model.model.layers.0.fc.lora_A.weight` there, with the same shape; our
`LoRA` is the part of its configuration in `method_of`. Whatever else a configuration asks for is refused by name.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from ..bridge import layout
from ..errors import AdapterError, check_keys
from ..lora import DoRALinear, LoRA, LoRAEmbedding, LoRALinear
from ..lora.method import matches
from ..targets import ALL_LINEAR, exact_targets, matcher
from ..trained import named_slots
from ..tree import bare, named_modules

# Fields that change neither the forward nor, once the keys are known, which modules carry an adapter.
_WITHOUT_EFFECT = {
    "auto_mapping", "base_model_name_or_path", "corda_config", "eva_config", "exclude_modules", "fan_in_fan_out",
    "inference_mode", "layers_pattern", "layers_to_transform", "loftq_config", "lora_ga_config", "megatron_core",
    "peft_version", "qalora_group_size", "revision", "runtime_config", "task_type",
}  # fmt: skip
_CARRIED = {
    "peft_type", "r", "lora_alpha", "lora_dropout", "use_rslora", "target_modules", "use_dora", "rank_pattern",
    "alpha_pattern", "bias", "modules_to_save", "init_lora_weights",
}  # fmt: skip
# Other initialisations of peft change the base weights too, and an adapter of theirs means nothing without that.
_INITIALISATIONS = (True, False, "gaussian", "eva", "orthogonal")
_BIASES = {"none": "none", "all": "all", "lora_only": "targets"}
_PREFIX = "base_model.model."
# By the kind of module: our name of a tensor, and the end of its key.
_LINEAR = {"lora_A": ".lora_A.weight", "lora_B": ".lora_B.weight"}
_DORA = {**_LINEAR, "magnitude": ".lora_magnitude_vector"}
_EMBEDDING = {"lora_A": ".lora_embedding_A", "lora_B": ".lora_embedding_B"}
_ENDS = {**_DORA, **{f"embedding {name}": end for name, end in _EMBEDDING.items()}}


def write(attachment, base_model: str | None) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Configuration and tensors for PEFT. PiSSA and OLoRA become plain LoRA of twice the rank."""
    tensors: dict[str, Tensor] = {}
    layers = {path: part for path, part in attachment.modules.items() if path}
    for path, part in layers.items():
        own = {name: parameter.detach() for name, parameter in part.adapter_parameters().items()}
        if isinstance(part, LoRALinear):
            own["lora_A"], own["lora_B"] = (factor.detach() for factor in part.factors())
        ends = _ends(part)
        tensors |= {_PREFIX + path + ends[name]: tensor for name, tensor in own.items()}
    for name, parameter in _also(attachment).items():
        path, _, slot = name.rpartition(".")
        tensors[f"{_PREFIX}{path}{'.base_layer' if path in layers else ''}.{slot}"] = parameter.detach()
    return _config(attachment.method, attachment.model, layers, base_model), tensors


def _also(attachment) -> dict[str, nn.Parameter]:
    return attachment.modules[""].adapter_parameters() if "" in attachment.modules else {}


def _ends(part: nn.Module) -> dict[str, str]:
    return _EMBEDDING if isinstance(part, LoRAEmbedding) else _DORA if isinstance(part, DoRALinear) else _LINEAR


def _config(method: LoRA, model: nn.Module, layers: dict[str, nn.Module], base_model: str | None) -> dict[str, Any]:
    """The configuration with which peft wraps exactly `layers`, by name."""
    targets = exact_targets(model, layers)
    ranks = {path: _rank(part) for path, part in layers.items()}
    root = {path: math.sqrt(rank) if method.rank_stabilized else rank for path, rank in ranks.items()}
    alphas = {path: part.scale * root[path] for path, part in layers.items()}
    rank = max(ranks.values(), key=list(ranks.values()).count)
    alpha = next(alphas[path] for path in layers if ranks[path] == rank)
    bias = {ours: theirs for theirs, ours in _BIASES.items()}[method.bias]
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": base_model,
        "r": rank,
        "lora_alpha": _plain(alpha),
        "lora_dropout": method.dropout,
        "use_rslora": method.rank_stabilized,
        "target_modules": targets.removeprefix("re:") if isinstance(targets, str) else targets,
        # One flag for all modules: where it is wrong for one, peft corrects it with a warning.
        "fan_in_fan_out": any(isinstance(part, LoRALinear) and part.layout.transposed for part in layers.values()),
        "bias": bias,
        "inference_mode": True,
        "init_lora_weights": True,
        "use_dora": method.dora,
        # From the modules, not from the method's patterns: ranks can change while training.
        "rank_pattern": {_exactly(path): ranks[path] for path in layers if ranks[path] != rank},
        "alpha_pattern": {
            _exactly(path): _plain(alphas[path]) for path in layers if not math.isclose(alphas[path], alpha)
        },
        "modules_to_save": list(method.train_also) or None,
    }


def _rank(part: nn.Module) -> int:
    return len(part.factors()[0]) if isinstance(part, LoRALinear) else len(part.lora_A)


def _exactly(path: str) -> str:
    return f"^{re.escape(path)}"


def _plain(number: float) -> float:
    """A whole number as one, and without the rounding of a quotient multiplied back."""
    number = round(number, 9)
    return int(number) if number == int(number) else number


def read(config: dict[str, Any], tensors: Mapping[str, Tensor], model: nn.Module, strict: bool):
    """The method for this model, and its tensors by our names. Raises AdapterError."""
    method = method_of(config)
    found, expected = _layers(config, model, tensors)
    keys = {path: _keys(path, module, method.dora) for path, module in {**found, **expected}.items()}
    also = _names_of_also(method, model, found or expected)
    if strict or not found:
        wanted = [key for path in expected for key in keys[path].values()]
        check_keys(tensors, [*wanted, *also.values()], "adapter_model.safetensors")
    state = {f"{path}.{name}": key for path in found for name, key in keys[path].items()} | also
    state = {name: tensors[key] for name, key in state.items() if key in tensors}
    # peft lets patterns match nothing
    patterns = {
        name: {pattern: value for pattern, value in getattr(method, name).items() if any(map(matches(pattern), found))}
        for name in ("rank_pattern", "alpha_pattern")
    }
    return replace(method, targets=exact_targets(model, found), **patterns), state


def _keys(path: str, module: nn.Module, dora: bool) -> dict[str, str]:
    """Our names of a module's tensors, and their keys."""
    ends = _EMBEDDING if isinstance(bare(module), nn.Embedding) else _DORA if dora else _LINEAR
    return {name: _PREFIX + path + end for name, end in ends.items()}


def _names_of_also(method: LoRA, model: nn.Module, found: Mapping[str, nn.Module]) -> dict[str, str]:
    """Our names of what is trained besides, and their keys."""
    names: dict[str, str] = {}
    ends = matcher(method.train_also) if method.train_also else lambda name: []
    whole = tuple(f"{name}." for name in named_modules(model) if ends(name))
    for name, _, slot, _ in named_slots(model):
        path = name.removesuffix(slot).removesuffix(".")
        if name.startswith(whole):
            names[name] = _PREFIX + name
        elif slot == "bias" and (method.bias == "all" or (method.bias == "targets" and path in found)):
            names[name] = f"{_PREFIX}{path}{'.base_layer' if path in found else ''}.bias"
    return names


def module_of(key: str) -> str | None:
    """The path of the module that a key in the file belongs to, or None for a key that is not one of LoRA's."""
    for end in _ENDS.values():
        if key.startswith(_PREFIX) and key.endswith(end):
            return key[len(_PREFIX) : -len(end)]
    return None


def _layers(config: dict[str, Any], model: nn.Module, keys: Iterable[str]) -> tuple[dict, dict]:
    """The model's layers that the file has keys for, and those that it should have keys for."""
    layers = {
        name: module
        for name, module in named_modules(model).items()
        if layout(module) is not None or isinstance(bare(module), nn.Embedding | nn.Conv2d)
    }
    paths = {module_of(key) for key in keys}
    found = {name: module for name, module in layers.items() if name in paths}
    targets = config.get("target_modules")
    # A narrowed or shorthand choice of peft's is known from the keys alone.
    narrowed = config.get("exclude_modules") or config.get("layers_to_transform") is not None
    if not targets or targets == ALL_LINEAR or narrowed:
        return found, found
    matching = matcher("re:" + targets if isinstance(targets, str) else targets)
    whole = matcher(config["modules_to_save"]) if config.get("modules_to_save") else lambda name: []
    return found, {name: layers[name] for name in layers if name in found or (matching(name) and not whole(name))}


def method_of(config: dict[str, Any]) -> LoRA:
    """The LoRA of a configuration, but for its targets. Raises AdapterError for what a LoRA here cannot be."""
    if config.get("peft_type") != "LORA":
        raise AdapterError(f"peft_type={config.get('peft_type')!r}: only 'LORA' adapters can be loaded")
    if (bias := config.get("bias", "none")) not in _BIASES:
        raise AdapterError(f"bias={bias!r}: known are {', '.join(_BIASES)}")
    if (init := config.get("init_lora_weights", True)) not in _INITIALISATIONS:
        raise AdapterError(f"init_lora_weights={init!r}: changes the base weights; convert it with peft to plain LoRA")
    for field in sorted(config.keys() - _CARRIED - _WITHOUT_EFFECT):
        if config[field]:
            raise AdapterError(f"{field}={config[field]!r}: this option of peft is not supported; train without it")
    try:
        return LoRA(
            rank=config["r"],
            alpha=config["lora_alpha"],
            dropout=config.get("lora_dropout", 0.0),
            rank_stabilized=config.get("use_rslora", False),
            dora=config.get("use_dora", False),
            rank_pattern=config.get("rank_pattern") or {},
            alpha_pattern=config.get("alpha_pattern") or {},
            bias=_BIASES[bias],
            train_also=tuple(config.get("modules_to_save") or ()),
        )
    except KeyError as error:
        raise AdapterError(f"the field {error} is missing") from None
    except (TypeError, ValueError) as error:
        raise AdapterError(str(error)) from None
