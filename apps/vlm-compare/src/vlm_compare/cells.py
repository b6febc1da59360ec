"""The cells of a comparison: a method, a point of the grid and a seed each, all else equal."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from itertools import product
from typing import Any

import yaml

from vlm_train.errors import ConfigError
from vlm_train.options.checks import AUTO, LORA_KIN, METHODS
from vlm_train.options.config import TrainConfig
from vlm_train.options.config_file import option_of

# Options that some methods have and others do not: those others are compared without them.
OF_SOME = {
    **dict.fromkeys(("rank", "alpha", "dropout", "lora_plus_ratio"), LORA_KIN),
    "peft_config": ("peft",),
}
PLACES = ("out", "overwrite")  # options that every cell has of its own
# What has to be equal for scores to be comparable.
EQUAL = ("model", "revision", "data", "image_dir", "format", "columns", "val_fraction", "val_rows", "metric")
Point = tuple[tuple[str, Any], ...]  # the values of a point of the grid, by option


@dataclass(frozen=True)
class Cell:
    """One run of the comparison. `group` names what is compared, the runs of which differ in their seeds alone."""

    method: str
    point: Point
    seed: int

    @property
    def group(self) -> str:
        return " ".join([self.method, *(f"{name.replace('_', '-')}={value}" for name, value in self.point)])

    @property
    def name(self) -> str:
        """The cell's folder."""
        values = [f"{name}={value}".replace("/", "_") for name, value in self.point]
        return "-".join([self.method, *values, f"seed{self.seed}"])


def cells_of(methods: str, grid: Sequence[str], seeds: int, common: dict[str, Any]) -> dict[Cell, TrainConfig]:
    """Every cell with its configuration, all seeds of a group one after the other.

    Args:
        methods: names, separated by commas.
        grid: `option=value,value` each.
        common: options that all cells share.

    Raises:
        ConfigError: a method or option is unknown, or makes no sense with others.
    """
    names = [name.strip() for name in methods.split(",")]
    known = (*METHODS, "peft")
    for name in names:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
            raise ConfigError(f"--methods: {name!r} is unknown; {hint}")
    if len(set(names)) < len(names):
        raise ConfigError(f"--methods {methods}: names one twice; leave it out")
    if seeds < 1:
        raise ConfigError("--seeds must be at least 1")
    points = list(product(*(_axis(text) for text in grid)))
    if len({name for text in grid for name in [text.partition("=")[0]]}) < len(grid):
        raise ConfigError("--grid: an option is given twice; put its values into one")
    cells = {}
    for method in names:
        for point in dict.fromkeys(_of_method(point, method) for point in points):
            for seed in range(seeds):
                cell = Cell(method, point, seed)
                options = dict(_of_method(tuple(common.items()), method)) | dict(point)
                cells[cell] = TrainConfig(**options, method=method, seed=seed)
    return cells


def same_conditions(recorded: dict[str, Any], config: TrainConfig) -> str | None:
    """The first option in which a finished run differs from what its cell asks for; None if there is none."""
    free = {*PLACES, "cache_size", "cache_dir", "track", "checkpoint_every", "keep_checkpoints"}
    resolved = {"batch_size": AUTO, "quantization": "auto"}  # asked for so, a run records what came of it
    for name, wanted in config.as_dict().items():
        if name not in free and resolved.get(name, ...) != wanted and recorded.get(name) != wanted:
            return name
    return None


def in_folder(config: TrainConfig, folder: str) -> TrainConfig:
    return replace(config, out=folder)


def _axis(text: str) -> list[tuple[str, Any]]:
    name, equals, values = text.partition("=")
    name = name.strip().replace("-", "_")
    options = [field.name for field in fields(TrainConfig)]
    if not equals or name not in options or name in ("method", "seed", *PLACES, *EQUAL):
        near = get_close_matches(name, options, n=1)
        hint = "give OPTION=VALUE,VALUE, an option of vlm-train other than what is trained on"
        if near and near[0] != name:
            hint = f"did you mean {near[0]}?"
        raise ConfigError(f"--grid {text!r} cannot be used: {hint}")
    return [(name, option_of(f"--grid {text}", name, yaml.safe_load(value))) for value in values.split(",")]


def _of_method(options: Point, method: str) -> Point:
    return tuple((name, value) for name, value in options if method in OF_SOME.get(name, (method,)))
