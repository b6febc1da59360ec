"""The configuration of LoRA as Hugging Face PEFT writes it down, and our `LoRA` in it.

Whatever else a configuration asks for is refused by name.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from ..errors import AdapterError
from ..lora import LoRA, LoRALinear
from ..lora.method import matches
from ..targets import ALL_LINEAR, exact_targets

# Fields that change neither the forward nor, once the keys are known, which modules carry an adapter.
_WITHOUT_EFFECT = {
    "auto_mapping", "base_model_name_or_path", "corda_config", "ensure_weight_tying", "eva_config", "exclude_modules",
    "fan_in_fan_out", "inference_mode", "layers_pattern", "layers_to_transform", "loftq_config", "lora_ga_config",
    "megatron_core", "peft_version", "qalora_group_size", "revision", "runtime_config", "task_type",
}  # fmt: skip
_CARRIED = {
    "peft_type", "r", "lora_alpha", "lora_dropout", "use_rslora", "target_modules", "use_dora", "rank_pattern",
    "alpha_pattern", "bias", "modules_to_save", "init_lora_weights",
}  # fmt: skip
# Other initialisations of peft change the base weights too, and an adapter of theirs means nothing without that.
_INITIALISATIONS = (True, False, "gaussian", "eva", "orthogonal")
_BIASES = {"none": "none", "all": "all", "lora_only": "targets"}


def config_of(
    method: LoRA, model: nn.Module, layers: dict[str, nn.Module], whole: Iterable[str], base_model: str | None
) -> dict[str, Any]:
    """The configuration with which peft wraps exactly `layers`, by name, and saves the modules `whole`."""
    targets = exact_targets(model, layers)
    ranks = {path: rank_of(part) for path, part in layers.items()}
    alphas = {path: _alpha(part.scale, ranks[path], method) for path, part in layers.items()}
    rank = max(ranks.values(), key=list(ranks.values()).count)
    alpha = next(alphas[path] for path in layers if ranks[path] == rank)
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": base_model,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": method.dropout,
        "use_rslora": method.rank_stabilized,
        "target_modules": targets.removeprefix("re:") if isinstance(targets, str) else targets,
        # One flag for all modules: where it is wrong for one, peft corrects it with a warning.
        "fan_in_fan_out": any(isinstance(part, LoRALinear) and part.layout.transposed for part in layers.values()),
        "bias": next(theirs for theirs, ours in _BIASES.items() if ours == method.bias),
        "inference_mode": True,
        "init_lora_weights": True,
        "use_dora": method.dora,
        # From the modules, not from the method's patterns: ranks can change while training.
        "rank_pattern": {_exactly(path): ranks[path] for path in layers if ranks[path] != rank},
        "alpha_pattern": {_exactly(path): alphas[path] for path in layers if alphas[path] != alpha},
        "modules_to_save": list(whole) or None,
    }


def rank_of(part: nn.Module) -> int:
    return len(part.factors()[0]) if isinstance(part, LoRALinear) else len(part.lora_A)


def _alpha(scale: float, rank: int, method: LoRA) -> float:
    """The number that gives this scale, without the rounding of a quotient multiplied back where that gives it too."""
    alpha = scale / method.scale_of(rank, 1)
    plain = round(alpha, 9)
    if method.scale_of(rank, plain) != scale:
        return alpha
    return int(plain) if plain == int(plain) else plain


def _exactly(path: str) -> str:
    return f"^{re.escape(path)}"


def method_of(config: dict[str, Any], layers: Iterable[str]) -> LoRA:
    """The LoRA of a configuration that is on these layers.

    Its targets are those of the configuration if that names them, else an expression of the layers' names. Raises
    AdapterError for what a LoRA here cannot be.
    """
    if (bias := config.get("bias", "none")) not in _BIASES:
        raise AdapterError(f"bias={bias!r}: known are {', '.join(_BIASES)}")
    if (init := config.get("init_lora_weights", True)) not in _INITIALISATIONS:
        raise AdapterError(f"init_lora_weights={init!r}: changes the base weights; convert it with peft to plain LoRA")
    for field in sorted(config.keys() - _CARRIED - _WITHOUT_EFFECT):
        if config[field]:
            raise AdapterError(f"{field}={config[field]!r}: this option of peft is not supported; train without it")
    layers, targets = list(layers), config.get("target_modules")
    if is_narrowed(config):
        targets = "re:" + "|".join(re.escape(path) for path in layers)
    try:
        return LoRA(
            rank=config["r"],
            alpha=config["lora_alpha"],
            dropout=config.get("lora_dropout", 0.0),
            targets=f"re:{targets.removeprefix('re:')}" if isinstance(targets, str) else targets,
            rank_stabilized=config.get("use_rslora", False),
            dora=config.get("use_dora", False),
            rank_pattern=_used(config.get("rank_pattern"), layers),
            alpha_pattern=_used(config.get("alpha_pattern"), layers),
            bias=_BIASES[bias],
            train_also=tuple(config.get("modules_to_save") or ()),
        )
    except KeyError as error:
        raise AdapterError(f"the field {error} is missing") from None
    except (TypeError, ValueError) as error:
        raise AdapterError(str(error)) from None


def is_narrowed(config: Mapping[str, Any]) -> bool:
    """Whether the targets are a shorthand or a choice of peft's that is known from the keys alone."""
    targets = config.get("target_modules")
    narrowing = config.get("exclude_modules") or config.get("layers_to_transform") is not None
    return not targets or targets == ALL_LINEAR or bool(narrowing)


def _used(pattern: Mapping[str, Any] | None, layers: list[str]) -> dict[str, Any]:
    """Those of a pattern that match a layer: peft lets them match nothing."""
    return {entry: value for entry, value in (pattern or {}).items() if any(map(matches(entry), layers))}


def saved_whole(entries: Iterable[str], names: Iterable[str]) -> list[str]:
    """Which of the modules of these names peft takes for its `modules_to_save`: those inside others left out.

    It asks for the end of a name, not for an end at a dot, and calls the model itself "model".
    """
    entries = tuple(entries)
    hits = [name for name in names if name and f"model.{name}".endswith(entries)] if entries else []
    return [name for name in hits if not name.startswith(tuple(f"{hit}." for hit in hits))]


def to_save(train_also: Iterable[str] | str, whole: Iterable[str], names: list[str]) -> list[str] | None:
    """`modules_to_save` for exactly the modules `whole`, as the user put it if that does; None if there is none."""
    wanted = {name for name in whole if not name.startswith(tuple(f"{other}." for other in whole))}
    theirs = [] if isinstance(train_also, str) else list(train_also)
    for entries in (theirs, sorted(wanted), [f"model.{name}" for name in sorted(wanted)]):
        if {*saved_whole(entries, names)} == wanted:
            return entries
    return None
