"""What is exported: a base model, one or more adapters with their weights, and what their run recorded."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlm_export.errors import ExportError
from vlm_runs import RunError, read_run
from vlm_runs.run import ADAPTER_CONFIG

# By the `peft_type` of their files: why these cannot be put into the weights.
UNMERGEABLE = {
    "peft_methods.Adapter": "a bottleneck adapter is a small network with a nonlinearity, which no weight can hold",
    "peft_methods.Prefix": "a prefix is keys and values in front of the text's, which no weight can hold",
    "PREFIX_TUNING": "a prefix is keys and values in front of the text's, which no weight can hold",
}


@dataclass(frozen=True)
class Source:
    """`base`: what `vlm_models.load` takes; `quantization` and `dtype`: as it was trained beside the adapters.

    adapters: folders with the weight of each. record: the run.json of the run, or of the first of several; {} for an
    adapter without one. run: the folder of the one run.
    """

    base: str
    adapters: dict[Path, float]
    quantization: str = "none"
    dtype: str = "auto"
    revision: str | None = None
    record: dict[str, Any] = field(default_factory=dict)
    run: Path | None = None

    @property
    def configs(self) -> list[dict[str, Any]]:
        """The adapter_config.json of each adapter."""
        return [_json(folder / ADAPTER_CONFIG, "an adapter") for folder in self.adapters]

    @property
    def unmergeable(self) -> str | None:
        """Why the adapters cannot be merged, if they cannot."""
        kinds = (str(config.get("peft_type")) for config in self.configs)
        return next((UNMERGEABLE[kind] for kind in kinds if kind in UNMERGEABLE), None)

    @property
    def name(self) -> str:
        """For people: the runs or folders, with their weights."""
        names = {folder: (folder.parent if folder.name == "adapter" else folder).name for folder in self.adapters}
        weights = self.adapters.items()
        return " + ".join(
            names[folder] if weight == 1 else f"{weight:g} × {names[folder]}" for folder, weight in weights
        )


def read_source(run: Path | None, adapters: str | None, from_peft: Path | None, model: str | None) -> Source:
    """The source that the options name. Raises `ExportError`."""
    if sum(option is not None for option in (run, adapters, from_peft)) != 1:
        raise ExportError("give one of --run DIR, --adapters A=0.7,B=0.3 or --from-peft DIR")
    if run is not None:
        if model is not None:
            raise ExportError("--model goes with --adapters or --from-peft; a run knows its own model")
        return _of_run(run, "--run")
    if from_peft is not None:
        return _of_adapter(from_peft, model, "--from-peft")
    weighted = _weighted(adapters)
    sources = [_of_any(place, model) for place in weighted]
    others = [source for source in sources if (source.base, source.revision) != (sources[0].base, sources[0].revision)]
    if others:
        raise ExportError(
            f"--adapters: of different base models, {sources[0].base} and {others[0].base}; give one --model"
        )
    for source in sources:
        (folder,), config = source.adapters, source.configs[0]
        if config.get("peft_type") != "LORA" or config.get("use_dora"):
            raise ExportError(f"--adapters: {folder} does more than add to weights; only sums of LoRA can be exported")
    folders = {next(iter(source.adapters)): weight for source, weight in zip(sources, weighted.values(), strict=True)}
    first = sources[0]
    return Source(first.base, folders, first.quantization, first.dtype, first.revision, first.record)


def _weighted(text: str) -> dict[Path, float]:
    weights: dict[Path, float] = {}
    for part in text.split(","):
        place, _, weight = part.rpartition("=")
        try:
            weights[Path(place.strip())] = float(weight)
        except ValueError:
            place = ""
        if not place:
            raise ExportError(f"--adapters: {part.strip()!r} is no folder=weight; write runs/a=0.7,runs/b=0.3")
    if len(weights) < len(text.split(",")):
        raise ExportError("--adapters names a folder twice; add its weights")
    return weights


def _of_any(place: Path, model: str | None) -> Source:
    if model is None and (place / "run.json").is_file():
        return _of_run(place, "--adapters")
    return _of_adapter(place / "adapter" if (place / "run.json").is_file() else place, model, "--adapters")


def _of_run(folder: Path, option: str) -> Source:
    try:
        run = read_run(folder)
    except RunError as error:
        raise ExportError(f"{option} {error}") from error
    dtype = run.record.get("model", {}).get("dtype", run.dtype)
    return Source(run.model, {run.adapter: 1.0}, run.quantization, dtype, run.revision, run.record, folder)


def _of_adapter(folder: Path, model: str | None, option: str) -> Source:
    if not (folder / ADAPTER_CONFIG).is_file():
        raise ExportError(f"{option} {folder} holds no {ADAPTER_CONFIG}; give the folder of an adapter, or of a run")
    base = model or _json(folder / ADAPTER_CONFIG, "an adapter").get("base_model_name_or_path")
    if not base:
        raise ExportError(f"{option} {folder} does not name its base model; give --model")
    return Source(base, {folder: 1.0})


def _json(file: Path, what: str) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ExportError(f"{file} is not a JSON file: {error}; it should describe {what}") from None
    if not isinstance(content, dict):
        raise ExportError(f"{file} is not a JSON object; it should describe {what}")
    return content
