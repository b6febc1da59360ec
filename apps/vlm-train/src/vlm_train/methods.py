"""The methods by the names that `--method` takes, each made for a model from the options of a run."""

import re
from collections.abc import Callable

import peft_methods as pm
from vlm_models import VLM
from vlm_train.config import ConfigError, TrainConfig

PARTS = ("language", "vision", "all")


def method_of(config: TrainConfig, vlm: VLM) -> pm.Method:
    """The method as configured. `--rank`, `--alpha` and `--dropout` are for LoRA and its kin.

    Raises:
        ConfigError: the targets are module names, and the method takes a part of the model.
    """
    return _METHODS[config.method](config, vlm)


def _lora(kind: type[pm.LoRA] = pm.LoRA, **options) -> Callable[[TrainConfig, VLM], pm.Method]:
    def make(config: TrainConfig, vlm: VLM) -> pm.Method:
        targets = vlm.targets(config.targets) if config.targets in PARTS else config.target_list
        return kind(rank=config.rank, alpha=config.alpha, dropout=config.dropout, targets=targets, **options)

    return make


def _within(kind: type[pm.Method], **options) -> Callable[[TrainConfig, VLM], pm.Method]:
    def make(config: TrainConfig, vlm: VLM) -> pm.Method:
        return kind(within=_pattern(config, vlm), **options)

    return make


def _pattern(config: TrainConfig, vlm: VLM) -> str:
    """A regular expression of the names inside the part of the model that is to be adapted."""
    if config.targets.startswith("re:"):
        return config.targets.removeprefix("re:")
    if config.targets not in PARTS:
        raise ConfigError(
            f"--targets {config.targets!r}: --method {config.method} takes {', '.join(PARTS)}, or re: and a regular "
            "expression of names"
        )
    parts = {"language": vlm.language_parts, "vision": vlm.vision_parts, "all": vlm.language_parts + vlm.vision_parts}
    return "|".join(rf"{re.escape(name)}(\..*)?" for name in parts[config.targets])


_METHODS: dict[str, Callable[[TrainConfig, VLM], pm.Method]] = {
    "lora": _lora(),
    "rslora": _lora(rank_stabilized=True),
    "dora": _lora(dora=True),
    "grit": _lora(pm.GRIT),
    "houlsby": _within(pm.Adapter, placement="houlsby"),
    "pfeiffer": _within(pm.Adapter, placement="pfeiffer"),
    "parallel": _within(pm.Adapter, placement="parallel"),
    "prefix": _within(pm.Prefix),
    "full": _within(pm.FullFineTuning),
    "bitfit": _within(pm.BitFit),
    "norm": _within(pm.NormTuning),
}
