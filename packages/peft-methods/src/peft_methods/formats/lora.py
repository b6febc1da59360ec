"""LoRA as Hugging Face PEFT writes it down.

A tensor `layers.0.fc.lora_A` of ours is `base_model.model.layers.0.fc.lora_A.weight` there, with the same shape; our
`LoRA` is the part of its configuration in `method_of`. Whatever else a configuration asks for is refused by name.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from ..bridge import layout
from ..errors import AdapterError, check_keys
from ..lora import LoRA
from ..targets import ALL_LINEAR, exact_targets, matcher
from ..tree import named_modules

# Fields that change neither the forward nor, once the keys are known, which modules carry an adapter.
_WITHOUT_EFFECT = {
    "auto_mapping", "base_model_name_or_path", "corda_config", "eva_config", "exclude_modules", "fan_in_fan_out",
    "inference_mode", "layers_pattern", "layers_to_transform", "loftq_config", "lora_ga_config", "megatron_core",
    "peft_version", "qalora_group_size", "revision", "runtime_config", "task_type",
}  # fmt: skip
# Other initialisations of peft change the base weights too, and an adapter of theirs means nothing without that.
_INITIALISATIONS = (True, False, "gaussian", "eva", "orthogonal")
_SUFFIX = {"lora_A": ".lora_A.weight", "lora_B": ".lora_B.weight"}
_PREFIX = "base_model.model."


def key_of(name: str) -> str:
    """The key in the file of the tensor `name` of ours."""
    return f"{_PREFIX}{name}.weight"


def module_of(key: str) -> str | None:
    """The path of the module that a key in the file belongs to, or None for a key that is not one of LoRA's."""
    for suffix in _SUFFIX.values():
        if key.startswith(_PREFIX) and key.endswith(suffix):
            return key[len(_PREFIX) : -len(suffix)]
    return None


def keys_of_module(path: str) -> list[str]:
    return [f"{_PREFIX}{path}{suffix}" for suffix in _SUFFIX.values()]


def write(attachment, base_model: str | None) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Configuration and tensors for PEFT."""
    config = config_of(attachment.method, attachment.model, attachment.modules, base_model)
    return config, {key_of(name): parameter.detach() for name, parameter in attachment.named_parameters()}


def read(config: dict[str, Any], tensors: Mapping[str, Tensor], model: nn.Module, strict: bool):
    """The method for this model, and its tensors by our names. Raises AdapterError."""
    method = method_of(config)
    found, expected = modules_of(config, model, tensors)
    if strict or not found:
        check_keys(tensors, [key for name in expected for key in keys_of_module(name)], "adapter_model.safetensors")
    names = {key: f"{path}.{name}" for path in found for name, key in zip(_SUFFIX, keys_of_module(path), strict=True)}
    state = {name: tensors[key] for key, name in names.items() if key in tensors}
    return replace(method, targets=exact_targets(model, found)), state


def config_of(method: LoRA, model: nn.Module, modules: dict[str, nn.Module], base_model: str | None) -> dict[str, Any]:
    """The configuration with which peft wraps exactly `modules`, by name."""
    targets = exact_targets(model, modules)
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": base_model,
        "r": method.rank,
        "lora_alpha": method.alpha,
        "lora_dropout": method.dropout,
        "use_rslora": method.rank_stabilized,
        "target_modules": targets.removeprefix("re:") if isinstance(targets, str) else targets,
        # One flag for all modules: where it is wrong for one, peft corrects it with a warning.
        "fan_in_fan_out": any(module.layout.transposed for module in modules.values()),
        "bias": "none",
        "inference_mode": True,
        "init_lora_weights": True,
        "use_dora": False,
        "rank_pattern": {},
        "alpha_pattern": {},
        "modules_to_save": None,
    }


def method_of(config: dict[str, Any]) -> LoRA:
    """The LoRA of a configuration, but for its targets. Raises AdapterError for what a LoRA here cannot be."""
    carried = {"peft_type", "r", "lora_alpha", "lora_dropout", "use_rslora", "target_modules"}
    if config.get("peft_type") != "LORA":
        raise AdapterError(f"peft_type={config.get('peft_type')!r}: only 'LORA' adapters can be loaded")
    if (bias := config.get("bias", "none")) != "none":
        raise AdapterError(f"bias={bias!r}: trained biases are not supported; train with bias='none'")
    if (init := config.get("init_lora_weights", True)) not in _INITIALISATIONS:
        raise AdapterError(f"init_lora_weights={init!r}: changes the base weights; convert it with peft to plain LoRA")
    for field in sorted(config.keys() - carried - _WITHOUT_EFFECT - {"bias", "init_lora_weights"}):
        if config[field]:
            raise AdapterError(f"{field}={config[field]!r}: this option of peft is not supported; train without it")
    try:
        return LoRA(
            rank=config["r"],
            alpha=config["lora_alpha"],
            dropout=config.get("lora_dropout", 0.0),
            rank_stabilized=config.get("use_rslora", False),
        )
    except KeyError as error:
        raise AdapterError(f"the field {error} is missing") from None
    except (TypeError, ValueError) as error:
        raise AdapterError(str(error)) from None


def modules_of(config: dict[str, Any], model: nn.Module, keys: Iterable[str]) -> tuple[list[str], list[str]]:
    """Names of the model's linear layers that the file has keys for, and of those that it should have keys for."""
    linear = [name for name, module in named_modules(model).items() if layout(module) is not None]
    paths = {module_of(key) for key in keys}
    found = [name for name in linear if name in paths]
    targets = config.get("target_modules")
    # A narrowed or shorthand choice of peft's is known from the keys alone.
    narrowed = config.get("exclude_modules") or config.get("layers_to_transform") is not None
    if not targets or targets == ALL_LINEAR or narrowed:
        return found, found
    matching = matcher("re:" + targets if isinstance(targets, str) else targets)
    return found, [name for name in linear if name in found or matching(name)]
