"""The methods by the names that `--method` takes, each made for a model from the options of a run."""

import re
from collections.abc import Sequence
from dataclasses import fields
from difflib import get_close_matches
from typing import Any

import yaml

import peft_methods as pm
from vlm_models import VLM
from vlm_train.errors import ConfigError
from vlm_train.options.checks import LORA_KIN, PARTS
from vlm_train.options.config import TrainConfig

# The class of each, and the options that make it what it is called.
_METHODS: dict[str, tuple[type[pm.Method], dict[str, Any]]] = {
    "lora": (pm.LoRA, {}),
    "rslora": (pm.LoRA, {"rank_stabilized": True}),
    "dora": (pm.LoRA, {"dora": True}),
    "grit": (pm.GRIT, {}),
    "adapter": (pm.Adapter, {}),
    "houlsby": (pm.Adapter, {"placement": "houlsby"}),
    "pfeiffer": (pm.Adapter, {"placement": "pfeiffer"}),
    "parallel": (pm.Adapter, {"placement": "parallel"}),
    "prefix": (pm.Prefix, {}),
    "full": (pm.FullFineTuning, {}),
    "bitfit": (pm.BitFit, {}),
    "norm": (pm.NormTuning, {}),
}
# Not for --method-options: what the command line or the method's name says, and what the training loop settles.
_SETTLED = {"rank", "alpha", "dropout", "targets", "within", "learning_rate_ratio", "rank_stabilized", "dora"}
_SETTLED |= {"loss", "fisher"}


def method_of(config: TrainConfig, vlm: VLM) -> pm.Method:
    """The method as configured. `--rank`, `--alpha`, `--dropout` and `--lora-plus-ratio` are for LoRA and its kin.

    Raises:
        ConfigError: the targets are module names, and the method takes a part of the model; or an option of the method
            is unknown or out of range.
    """
    return _make(config.method, config, vlm, config.targets, further_options(config))


def vision_method_of(config: TrainConfig, vlm: VLM) -> pm.Method | None:
    """What `--vision-method` puts on the vision part, if it is given."""
    return _make(config.vision_method, config, vlm, "vision", {}) if config.vision_method else None


def further_options(config: TrainConfig) -> dict[str, Any]:
    """`--method-options` by name, checked without a model.

    Raises ConfigError: one is unknown, or has a value that the method refuses.
    """
    if config.method_options is None:
        return {}
    kind, fixed = _METHODS[config.method]
    known = [field.name for field in fields(kind) if field.name not in _SETTLED | fixed.keys()]
    options = _parse(config.method_options)
    for name in options:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"{config.method} has {', '.join(known) or 'none'}"
            raise ConfigError(f"--method-options: {name!r} is no option of --method {config.method}; {hint}")
    try:
        kind(**fixed, **options)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"--method-options: {error}") from None
    return options


def _parse(text: str) -> dict[str, Any]:
    """`a=1,b=x,c=[y,z]` as a dictionary: the values are YAML, and numbers as 1e-3, which YAML takes for a string."""
    try:
        found = yaml.safe_load("{" + re.sub(r"(\w)\s*=\s*", r"\1: ", text) + "}")
    except yaml.YAMLError:
        found = None
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found) or None in found.values():
        raise ConfigError(f"--method-options {text!r}: must be NAME=VALUE,NAME=VALUE, for example reduction=8")
    return {name: _number(value) for name, value in found.items()}


def _number(value: Any) -> Any:
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _make(name: str, config: TrainConfig, vlm: VLM, targets: str, options: dict[str, Any]) -> pm.Method:
    kind, fixed = _METHODS[name]
    if name not in LORA_KIN:
        return kind(within=_pattern(name, targets, vlm), **fixed, **options)
    return kind(
        rank=config.rank,
        alpha=config.alpha,
        dropout=config.dropout,
        learning_rate_ratio=config.lora_plus_ratio,
        targets=vlm.targets(targets) if targets in PARTS else config.target_list,
        **fixed,
        **options,
    )


def _pattern(name: str, targets: str, vlm: VLM) -> str:
    """A regular expression of the names inside the part of the model that is to be adapted."""
    if targets.startswith("re:"):
        return targets.removeprefix("re:")
    if targets not in PARTS:
        raise ConfigError(
            f"--targets {targets!r}: --method {name} takes {', '.join(PARTS)}, or re: and a regular expression of names"
        )
    parts: dict[str, Sequence[str]] = {
        "language": vlm.language_parts,
        "vision": vlm.vision_parts,
        "all": vlm.language_parts + vlm.vision_parts,
    }
    return "|".join(rf"{re.escape(name)}(\..*)?" for name in parts[targets])
