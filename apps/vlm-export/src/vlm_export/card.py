"""What describes an exported folder: the model card `README.md`, which the hub shows, and a run's `run.json`."""

import json
import re
from pathlib import Path
from typing import Any

from vlm_export.source import Source
from vlm_models import VLM

LIBRARIES = {"model": "transformers", "peft": "peft", "run": "peft-methods"}
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def write(folder: Path, source: Source, vlm: VLM, to: str, rank: int | None, facts: dict[str, str]) -> None:
    """Write `folder/README.md`. `facts` are what was measured."""
    matter: dict[str, Any] = {"library_name": LIBRARIES[to], "pipeline_tag": "image-text-to-text"}
    if HUB_ID.fullmatch(source.base) and not Path(source.base).exists():  # the hub takes nothing else for a base model
        matter |= {"base_model": source.base, "base_model_relation": "finetune" if to == "model" else "adapter"}
    matter["tags"] = ["vision-language", vlm.model.config.model_type, *_methods(source)]
    # JSON is YAML too, and is quoted right whatever is in it.
    lines = [f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in matter.items()]
    table = [f"| {name} | {value} |" for name, value in {**_trained_on(source, rank), **facts}.items()]
    text = [
        *("---", *lines, "---", "", f"# {Path(source.base).name} adapted", ""),
        *(f"{_what(source, vlm, to)}", "", "| | |", "|---|---|", *table, ""),
        *("```python", *_code(source, vlm, to), "```", ""),
    ]
    (folder / "README.md").write_text("\n".join(text), encoding="utf-8")


def run_record(source: Source, rank: int | None) -> dict[str, Any]:
    """A run.json for the source's adapter, of this rank if it was changed, that other commands take for a run's."""
    config = {
        **source.record.get("config", {}),
        "model": source.base,
        "quantization": source.quantization,
        "dtype": source.dtype,
        "revision": source.revision,
        **({} if rank is None else {"rank": rank}),
    }
    return {**_valid_record(source, rank), "status": "exported", "config": config}


def _valid_record(source: Source, rank: int | None) -> dict[str, Any]:
    """What the run recorded; its results are left out where this adapter is another than theirs."""
    changed = rank is not None or list(source.adapters.values()) != [1.0]
    return {name: value for name, value in source.record.items() if not (changed and name == "results")}


def _methods(source: Source) -> list[str]:
    method = source.record.get("config", {}).get("method")
    return [method] if method else []


def _base(source: Source) -> str:
    """The base model's name; of a folder the last part, for the rest is nobody else's."""
    return Path(source.base).name if Path(source.base).exists() else source.base


def _what(source: Source, vlm: VLM, to: str) -> str:
    kind, base = type(vlm.model).__name__, f"`{_base(source)}`"
    if source.revision:
        base += f" (revision `{source.revision}`)"
    if to == "model":
        return f"A `{kind}` of transformers: {base} with an adapter merged into its weights."
    return f"An adapter for {base}, a `{kind}` of transformers."


def _trained_on(source: Source, rank: int | None) -> dict[str, str]:
    """What the run recorded; of several adapters nothing, for no record is about their sum."""
    record, facts = _valid_record(source, rank), {}
    if len(source.adapters) > 1 or not record:
        return facts
    config, data, results = record["config"], record.get("data", {}), record.get("results", {})
    if config.get("data"):
        rows = data.get("train", {}).get("rows")
        facts["trained on"] = Path(config["data"]).name + (f", {rows:,} rows" if rows else "")
    rows = data.get("validation", {}).get("rows")
    for name, value in results.get("after", {}).items():
        interval = results.get("intervals", {}).get(name)
        said = f"{value:.3f}" + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")
        facts[name.replace("_", " ")] = said + (f", {rows:,} validation rows" if rows else "")
    return facts


def _code(source: Source, vlm: VLM, to: str) -> list[str]:
    revision = f", revision={source.revision!r}" if source.revision else ""
    if to == "model":
        reading = ["model = AutoModelForImageTextToText.from_pretrained(FOLDER)"]
        if vlm.family == "encoder_decoder":
            names = "AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer"
            reading += ["image_processor = AutoImageProcessor.from_pretrained(FOLDER)"]
            reading += ["tokenizer = AutoTokenizer.from_pretrained(FOLDER)"]
        else:
            names = "AutoModelForImageTextToText, AutoProcessor"
            reading += ["processor = AutoProcessor.from_pretrained(FOLDER)"]
        return [f"from transformers import {names}", "", *reading]
    if to == "peft":
        return [
            *("from peft import PeftModel", "from transformers import AutoModelForImageTextToText", ""),
            f"model = AutoModelForImageTextToText.from_pretrained({_base(source)!r}{revision})",
            "model = PeftModel.from_pretrained(model, FOLDER)",
        ]
    return [
        *("from pathlib import Path", "", "import vlm_models", "from vlm_runs.adapters import put_on", ""),
        f"vlm = vlm_models.load({_base(source)!r}, {source.quantization!r}{revision})",
        'put_on(vlm.model, Path(FOLDER, "adapter"))',
    ]
