"""`--resume`: the options of a run that was begun, from its folder. It imports nothing heavy."""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

from vlm_train.errors import ConfigError
from vlm_train.options.config import TrainConfig

# What may differ from the beginning, since the result does not depend on it.
FREE = (
    "device",
    "workers",
    "cache_features",
    "cache_size",
    "cache_dir",
    "checkpoint_every",
    "keep_checkpoints",
    "track",
)
SPLIT = ("batch_size", "accumulate")  # their product is what a step's result depends on


def options_of(folder: Path, given: dict[str, Any]) -> dict[str, Any]:
    """The options that the run in `folder` was begun with, with those `given` that may be others.

    Raises ConfigError: there is no run, or an option is given that would make it another run.
    """
    try:
        recorded = json.loads((folder / "run.json").read_text(encoding="utf-8"))["config"]
    except OSError:
        raise ConfigError(f"--resume {folder}: there is no run in it, run.json is missing") from None
    except (ValueError, KeyError, TypeError):
        raise ConfigError(f"--resume {folder}: its run.json is damaged; begin the run anew with --overwrite") from None
    known = {field.name for field in fields(TrainConfig)}
    if unknown := sorted(recorded.keys() - known):
        raise ConfigError(f"--resume {folder}: {unknown[0]} is no option of this version; use the one that began it")
    options = {**recorded, "out": str(folder), "overwrite": False}
    for name, value in given.items():
        if name not in (*FREE, *SPLIT) and value != options[name]:
            raise ConfigError(
                f"--{name.replace('_', '-')} {value}: the run in {folder} was begun with {options[name]}; leave it "
                "out, or begin another run"
            )
    changed = {**options, **{name: given[name] for name in given if name in (*FREE, *SPLIT)}}
    rows, before = (some["batch_size"] * some["accumulate"] for some in (changed, options))
    if rows != before:
        raise ConfigError(f"--batch-size times --accumulate is {rows}, and was {before}; keep it")
    return changed
