"""`--config FILE.yaml`, and `--print-config`, which writes such a file with the source of each value."""

from collections.abc import Mapping
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from vlm_train.errors import ConfigError
from vlm_train.options.config import AUTO, TrainConfig, rows_or_auto

NOT_A = {int: "no whole number", float: "no number", str: "no text", bool: "neither true nor false"}


def read_config(file: Path) -> dict[str, Any]:
    """The options in a YAML file, by field name; dashes and underscores are the same.

    Raises ConfigError, with file and line: an option is unknown (the nearest is named), given twice or of another type.
    """
    return {name: value for name, (value, _) in read_with_lines(file).items()}


def read_with_lines(file: Path) -> dict[str, tuple[Any, int]]:
    """The same with the number of the line that each stands in."""
    try:
        text = file.read_text(encoding="utf-8")
        tree, content = yaml.compose(text, yaml.SafeLoader), yaml.safe_load(text)
    except OSError as error:
        raise ConfigError(f"--config {file}: {error.strerror or error}") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise ConfigError(f"--config {file}:{mark.line + 1}: not YAML: {error.problem or error.context}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config {file}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"--config {file}: must hold `option: value` lines, for example `rank: 8`")
    known = [field.name for field in fields(TrainConfig)]
    options: dict[str, tuple[Any, int]] = {}
    for (key_node, _), (key, value) in zip(_distinct(file, tree.value), content.items(), strict=True):
        line = key_node.start_mark.line + 1
        name = str(key).replace("-", "_")
        if name not in known:
            near = get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"; did you mean {near[0].replace('_', '-')}?" if near else "; vlm-train --help lists all"
            raise ConfigError(f"--config {file}:{line}: unknown option {key!r}{hint}")
        options[name] = option_of(f"--config {file}:{line}", name, value), line
    return options


def effective(config: TrainConfig, sources: Mapping[str, str]) -> str:
    """The whole configuration as YAML that `--config` reads; behind each value where it comes from."""
    lines, sources = {}, dict(sources)
    if config.learning_rate is None:
        sources["learning_rate"] = f"default, {config.peak_learning_rate:g} for this model"
    for name, value in config.as_dict().items():
        value = "auto" if name == "batch_size" and value == AUTO else value
        text = yaml.safe_dump({name.replace("_", "-"): value}, width=10_000, allow_unicode=True)
        lines[name] = text.rstrip("\n")
    width = min(50, max(map(len, lines.values())))
    return "".join(f"{line:{width}}  # {sources.get(name, 'default')}\n" for name, line in lines.items())


def _distinct(file: Path, pairs: list[tuple[yaml.Node, yaml.Node]]) -> list[tuple[yaml.Node, yaml.Node]]:
    """The pairs of a mapping, in which YAML would let the last of two equal keys win."""
    lines: dict[str, int] = {}
    for key, _ in pairs:
        name, line = str(key.value).replace("-", "_"), key.start_mark.line + 1
        if name in lines:
            again = f"{key.value} stands in line {lines[name]} already"
            raise ConfigError(f"--config {file}:{line}: {again}; leave one out")
        if name == "<<":
            raise ConfigError(f"--config {file}:{line}: keys are not merged here; write the options out")
        lines[name] = line
    return pairs


def option_of(place: str, name: str, value: Any) -> Any:
    """A YAML value as the type of an option: to YAML 3e-4 is a string and on is true; targets may be a list.

    Raises ConfigError, which begins with `place`, if it is of another type.
    """
    (annotated,) = (field.type for field in fields(TrainConfig) if field.name == name)
    if isinstance(value, list) and name in ("targets", "track"):
        value = ",".join(map(str, value))
    if isinstance(value, dict) and name in ("columns", "method_options"):
        value = ",".join(f"{key}={one}" for key, one in value.items())
    if isinstance(value, bool) and name == "cache_features":
        value = "on" if value else "off"
    if name == "batch_size" and value == "auto":
        return rows_or_auto(value)
    kind, *rest = getattr(annotated.__origin__, "__args__", (annotated.__origin__,))
    if value is None and rest:  # T | None
        return None
    try:
        if kind is bool and isinstance(value, bool):
            return value
        if kind is bool or isinstance(value, bool | dict | list) or (kind is int and float(value) != int(float(value))):
            raise ValueError
        return kind(float(value)) if kind is int else kind(value)
    except (TypeError, ValueError, OverflowError):
        raise ConfigError(f"{place}: {name}: {value!r} is {NOT_A[kind]}") from None
