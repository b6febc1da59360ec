"""The configuration of a run: one field for each option of the command line, with its help."""

import math
from dataclasses import asdict, dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

METHODS = ("lora", "rslora", "dora", "grit", "houlsby", "pfeiffer", "parallel", "prefix", "full", "bitfit", "norm")
TINY_LEARNING_RATE, LEARNING_RATE = 3e-3, 2e-4


class ConfigError(ValueError):
    """An option has a value that cannot be used; the message names the option and the fix."""


def _option(help: str, name: str | None = None) -> Any:
    return typer.Option(*([name] if name else []), help=help, show_default=True)


@dataclass(frozen=True)
class TrainConfig:
    """What `vlm-train` was asked to do."""

    model: Annotated[str, _option("Hub id, folder, or tiny-git, tiny-blip2, tiny-qwen2-vl, tiny-vit-gpt2.")] = (
        "tiny-qwen2-vl"
    )
    data: Annotated[
        str, _option("easy-vqa, scenes, or a file or folder of images and texts; a hub name with --format datasets.")
    ] = "easy-vqa"
    image_dir: Annotated[str | None, _option("Where a table's images are. (default: the table's folder)")] = None
    format: Annotated[
        str, _option("How to read the data: auto, or a format that vlm-data's README lists, as captions-csv.")
    ] = "auto"
    columns: Annotated[
        str | None,
        _option("A table's own names for the usual columns: image=…,prompt=…,references=…; any of the three."),
    ] = None
    allow_overlap: Annotated[
        bool, typer.Option("--allow-overlap", help="Go on though training and test part share pictures.")
    ] = False
    method: Annotated[str, _option(f"What to train: {', '.join(METHODS)}.")] = "lora"
    rank: Annotated[int, _option("Rank of the matrices of LoRA and its kin (rslora, dora).")] = 16
    alpha: Annotated[float, _option("LoRA's scale: updates are multiplied by alpha / rank.")] = 32.0
    dropout: Annotated[float, _option("Dropout before the LoRA matrices.")] = 0.0
    targets: Annotated[
        str,
        _option(
            "language, vision or all; or re: and a regular expression of names; or, for LoRA and its kin, module-name "
            "suffixes (q_proj,v_proj)."
        ),
    ] = "language"
    epochs: Annotated[float, _option("Passes over the training rows.")] = 1.0
    max_steps: Annotated[int | None, _option("Stop after this many optimizer steps.")] = None
    batch_size: Annotated[int, _option("Rows in a forward pass.")] = 32
    accumulate: Annotated[int, _option("Forward passes in an optimizer step.")] = 1
    learning_rate: Annotated[
        float | None,
        _option(f"Peak learning rate. (default: {LEARNING_RATE:g}; {TINY_LEARNING_RATE:g} for the tiny models)"),
    ] = None
    warmup: Annotated[float, _option("Share of the steps in which the learning rate rises from zero.")] = 0.03
    val_fraction: Annotated[float, _option("Share of the images held out, where the data has no test split.")] = 0.2
    val_rows: Annotated[int, _option("Evaluate on at most this many validation rows; 0 is all.")] = 2500
    max_rejected: Annotated[
        int | None, _option("Bad rows tolerated before the run stops. (default: 1 % of the rows, at least 10)")
    ] = None
    seed: Annotated[int, _option("Of the split, the order of rows, the initial weights and dropout.")] = 0
    device: Annotated[str, _option("auto, cpu, cuda, mps or xpu.")] = "auto"
    dtype: Annotated[str, _option("Of the frozen model: auto, float32, bfloat16, float16 or float64.")] = "auto"
    revision: Annotated[str | None, _option("Branch, tag or commit of a hub id. (default: its main branch)")] = None
    quantization: Annotated[
        str,
        _option(
            "Of the language model's frozen weights: none, nf4 (4 bit), int8, or auto: nf4 on a GPU whose free memory "
            "does not suffice."
        ),
    ] = "none"
    cache_features: Annotated[
        str, _option("on: keep what a frozen image encoder makes of each image on disk; or off.")
    ] = "on"
    cache_size: Annotated[
        float, _option("GiB that the feature cache may take; what was not used for longest goes.")
    ] = 10.0
    cache_dir: Annotated[
        str | None,
        _option("The feature cache's folder, which runs share. (default: ~/.cache/vlm-models/features)"),
    ] = None
    out: Annotated[str | None, _option("The run's folder. (default: runs/MODEL-METHOD-DATA)")] = None

    def __post_init__(self) -> None:
        _check(self.method in METHODS, "method", f"{self.method!r} is unknown; known: {', '.join(METHODS)}")
        for name in ("rank", "batch_size", "accumulate"):
            _check(getattr(self, name) >= 1, name, "must be at least 1")
        for name in ("alpha", "epochs"):
            _check(getattr(self, name) > 0, name, "must be more than 0")
        for name in ("max_steps", "learning_rate"):
            _check(getattr(self, name) is None or getattr(self, name) > 0, name, "must be more than 0")
        for name in ("val_rows", "seed"):
            _check(getattr(self, name) >= 0, name, "must not be negative")
        _check(self.max_rejected is None or self.max_rejected >= 0, "max_rejected", "must not be negative")
        _check(0 <= self.dropout < 1, "dropout", "must be at least 0 and less than 1")
        _check(0 <= self.warmup <= 1, "warmup", "is a share of the steps, between 0 and 1")
        _check(0 < self.val_fraction < 1, "val_fraction", "must be between 0 and 1")
        _check(self.cache_features in ("on", "off"), "cache_features", f"{self.cache_features!r} is neither on nor off")
        _check(
            0 < self.cache_size < math.inf, "cache_size", "is in GiB, more than 0; --cache-features off does without"
        )
        _check(self.data.strip() != "", "data", "is empty; name a data set or a path")

    @property
    def peak_learning_rate(self) -> float:
        if self.learning_rate is not None:
            return self.learning_rate
        return TINY_LEARNING_RATE if self.model.startswith("tiny-") else LEARNING_RATE

    @property
    def target_list(self) -> str | list[str]:
        """`targets` as peft_methods takes it; the named parts (language, vision, all) are for the model to resolve."""
        return self.targets if self.targets.startswith("re:") else [part.strip() for part in self.targets.split(",")]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def read_config(file: Path) -> dict[str, Any]:
    """The options in a YAML file, by field name; dashes and underscores are the same. Unknown names are an error."""
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"--config {file}: {error.strerror or error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config {file}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"--config {file}: must hold `option: value` lines, for example `rank: 8`")
    types = {field.name: field.type for field in fields(TrainConfig)}
    options = {}
    for key, value in content.items():
        name = str(key).replace("-", "_")
        if name not in types:
            near = get_close_matches(name, types, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ConfigError(f"--config {file}: unknown option {key!r}{hint}")
        options[name] = _convert(file, name, value, types[name])
    return options


def _convert(file: Path, name: str, value: Any, annotated: Any) -> Any:
    """A YAML value as the type of its field: to YAML 3e-4 is a string and on is true; targets may be a list."""
    if isinstance(value, list) and name == "targets":
        value = ",".join(map(str, value))
    if isinstance(value, bool) and name == "cache_features":
        value = "on" if value else "off"
    kind, *rest = getattr(annotated.__origin__, "__args__", (annotated.__origin__,))
    if value is None and rest:  # T | None
        return None
    try:
        if kind is bool and isinstance(value, bool):
            return value
        if kind is bool or isinstance(value, bool | dict | list) or (kind is int and float(value) != int(float(value))):
            raise ValueError
        return kind(float(value)) if kind is int else kind(value)
    except (TypeError, ValueError):
        raise ConfigError(f"--config {file}: {name}: {value!r} is no {kind.__name__}") from None


def _check(holds: bool, field: str, problem: str) -> None:
    if not holds:
        raise ConfigError(f"--{field.replace('_', '-')} {problem}")
