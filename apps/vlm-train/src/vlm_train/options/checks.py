"""What the options of a run must hold, each alone and together, before anything is loaded."""

import math
import re
from dataclasses import fields
from typing import Any

from vlm_train.errors import ConfigError
from vlm_train.schedules import SCHEDULES

ADAPTERS = ("adapter", "houlsby", "pfeiffer", "parallel")
METHODS = ("lora", "rslora", "dora", "grit", *ADAPTERS, "prefix", "full", "bitfit", "norm")
OPTIMIZERS = ("adamw", "adamw8bit", "sgd")
METRICS = ("exact_match", "vqa_accuracy", "bleu", "cider", "loss")  # those that suit the rows are known with them
AUTO = -1  # the batch size that `--batch-size auto` stands for until the largest that fits is known
LORA_KIN = ("lora", "rslora", "dora", "grit")
PARTS = ("language", "vision", "all")
NAMED_DATA = ("easy-vqa", "scenes")  # made by us: their images are good and their parts share none


def check(config: Any) -> None:
    """Raise ConfigError for the first option of a `TrainConfig` that is out of range or makes no sense beside another.

    An option that is at its default says nothing, so that it cannot contradict any other.
    """
    _check_ranges(config)
    _check_choices(config)
    _check_method(config)
    _check_others(config)


def _check_ranges(config: Any) -> None:
    for name in ("rank", "accumulate", "keep_checkpoints", "max_image_tokens"):
        _require(getattr(config, name) >= 1, name, "must be at least 1")
    for name in ("evaluate_every", "patience", "checkpoint_every"):
        _require(getattr(config, name) is None or getattr(config, name) >= 1, name, "must be at least 1")
    _require(config.batch_size >= 1 or config.batch_size == AUTO, "batch_size", "must be at least 1, or auto")
    for name in ("alpha", "lora_plus_ratio"):
        _require(0 < getattr(config, name) < math.inf, name, "must be more than 0")
    for name in ("epochs", "max_steps", "learning_rate", "max_minutes"):
        value = getattr(config, name)
        _require(value is None or 0 < value < math.inf, name, "must be more than 0")
    for name in ("val_rows", "seed", "weight_decay", "max_gradient_norm"):
        _require(0 <= getattr(config, name) < math.inf, name, "must not be negative")
    for name in ("max_rejected", "workers"):
        _require(getattr(config, name) is None or getattr(config, name) >= 0, name, "must not be negative")
    _require(0 <= config.dropout < 1, "dropout", "must be at least 0 and less than 1")
    _require(0 <= config.warmup <= 1, "warmup", "is a share of the steps, between 0 and 1")
    _require(0 < config.val_fraction < 1, "val_fraction", "must be between 0 and 1")
    _require(
        0 < config.cache_size < math.inf, "cache_size", "is in GiB, more than 0; --cache-features off does without"
    )
    _require(config.data.strip() != "", "data", "is empty; name a data set or a path")


def _check_choices(config: Any) -> None:
    known = {
        "method": (*METHODS, "peft"),
        "vision_method": (None, *METHODS),
        "answer_choice": ("frequent", "sample"),
        "optimizer": OPTIMIZERS,
        "schedule": SCHEDULES,
        "metric": (None, *METRICS),
        "quantization": ("none", "nf4", "int8", "auto"),
    }
    for name, choices in known.items():
        value, named = getattr(config, name), ", ".join(filter(None, choices))
        _require(value in choices, name, f"{value!r} is unknown; known: {named}")
    _require(
        config.cache_features in ("on", "off"), "cache_features", f"{config.cache_features!r} is neither on nor off"
    )


def _check_method(config: Any) -> None:
    methods = {config.method, config.vision_method} - {None}
    lora = methods & set(LORA_KIN)
    for name in ("rank", "alpha", "dropout", "lora_plus_ratio"):
        _require(
            lora or not _given(config, name),
            name,
            f"is for {', '.join(LORA_KIN)}, not for --method {config.method}; leave it out"
            + ("" if config.method == "peft" else ", --method-options has this method's own"),
        )
    by_peft = config.method == "peft"
    _require(not by_peft or config.peft_config, "method", "peft: give its configuration by --peft-config FILE.json")
    _require(by_peft or config.peft_config is None, "peft_config", f"is for --method peft, not {config.method}")
    _require(not by_peft or config.method_options is None, "method_options", "for --method peft stand in --peft-config")
    _require(
        not by_peft or config.vision_method is None, "vision_method", "goes with this package's methods, not with peft"
    )
    if config.vision_method is not None:
        _require(config.targets == "language", "vision_method", "needs --targets language, and is a method of its own")
        _require(config.vision_method != "prefix", "vision_method", "prefix: is for causal attention; use another one")
    if config.targets.startswith("re:"):
        try:
            re.compile(config.targets.removeprefix("re:"))
        except re.error as error:
            raise ConfigError(f"--targets {config.targets!r} is no regular expression: {error}") from None
    if config.quantization in ("nf4", "int8"):
        trains_weights = config.method == "full" and config.targets != "vision"
        _require(
            not trains_weights,
            "quantization",
            f"{config.quantization} weights cannot be trained by --method full; use --method lora, or "
            "--quantization none",
        )
    _require(
        "grit" not in methods or config.optimizer != "adamw8bit",
        "optimizer",
        "adamw8bit: --method grit changes the moments of the optimizer, which it cannot in 8 bits; use adamw",
    )


def _check_others(config: Any) -> None:
    if config.stream:
        _require(config.data not in NAMED_DATA, "stream", f"is for shards of your own, not for --data {config.data}")
        _require(config.val_data is not None, "stream", "holds nothing out; give other pictures by --val-data")
        for name in ("format", "cache_size", "cache_dir", "stratify"):
            _require(not _given(config, name), name, "says nothing beside --stream; leave it out")
    _require(
        config.val_data is None or config.data not in NAMED_DATA,
        "val_data",
        f"says nothing beside --data {config.data}, which has a test part; leave it out",
    )
    for name in ("metric", "patience"):
        _require(
            getattr(config, name) is None or config.evaluate_every is not None,
            name,
            "compares evaluations during training; give --evaluate-every too",
        )
    _require(not config.overwrite or config.out is not None, "overwrite", "says nothing without --out; name the run")
    for name in ("image_dir", "columns", "format"):
        _require(
            config.data not in NAMED_DATA or not _given(config, name),
            name,
            f"is for data of your own, not for --data {config.data}; leave it out",
        )
    for name in ("cache_size", "cache_dir"):
        for switch, off in (("--cache-features off", config.cache_features == "off"), ("--plain", config.plain)):
            _require(not off or not _given(config, name), name, f"says nothing beside {switch}; leave one of them out")
    _require(
        config.revision is None or not config.model.startswith("tiny-"),
        "revision",
        f"is of a hub id, and {config.model} comes with the package; leave it out",
    )


def _given(config: Any, name: str) -> bool:
    """Whether an option says something: it is not at its default."""
    (field,) = (field for field in fields(config) if field.name == name)
    return getattr(config, name) != field.default


def _require(holds: object, field: str, problem: str) -> None:
    if not holds:
        raise ConfigError(f"--{field.replace('_', '-')} {problem}")
