"""The folder of a run: everything that other commands need, nothing else."""

import hashlib
import json
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

from datasets import Dataset

from vlm_models import VLM
from vlm_train.config import ConfigError, TrainConfig

PACKAGES = ("peft-methods", "vlm-data", "vlm-models", "vlm-eval", "vlm-train", "torch", "transformers", "datasets")


class RunDir:
    """`runs/NAME`: run.json, adapter/, metrics.jsonl, predictions.jsonl, rejected.jsonl, README.md, pictures."""

    def __init__(self, folder: Path):
        self.folder = folder

    @property
    def adapter(self) -> Path:
        return self.folder / "adapter"

    def write_json(self, name: str, content: dict) -> None:
        self.write_text(name, json.dumps(content, indent=2, ensure_ascii=False) + "\n")

    def write_lines(self, name: str, records: list[dict]) -> None:
        self.write_text(name, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))

    def write_text(self, name: str, text: str) -> None:
        """Whole or not at all: written beside and renamed."""
        partial = self.folder / f".{name}.partial"
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(self.folder / name)

    def append(self, name: str, record: dict) -> None:
        with (self.folder / name).open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


def choose_folder(config: TrainConfig) -> Path:
    """Where the run goes: `--out`, which must hold no run yet, or a new folder in `runs/`."""
    if config.out is not None:
        folder = Path(config.out)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            what = "already holds a run" if (folder / "run.json").exists() else "exists and is not empty"
            raise ConfigError(f"--out {folder} {what}; choose another folder or remove it")
        return folder
    base = Path("runs") / f"{Path(config.model).name}-{config.method}-{Path(config.data).stem}"
    number = 1
    while (folder := base if number == 1 else base.with_name(f"{base.name}-{number}")).exists():
        number += 1
    return folder


def describe_run(config: TrainConfig, vlm: VLM, train: Dataset, val: Dataset, trained: dict[str, Any]) -> dict:
    """What `run.json` records of a run before it starts."""
    return {
        "status": "running",
        "config": config.as_dict(),
        "model": {
            "name": config.model,
            "family": vlm.family,
            "class": type(vlm.model).__name__,
            "dtype": str(vlm.model.dtype).removeprefix("torch."),
            "quantization": config.quantization,
            "fingerprint": _hash(vlm.model.config.to_json_string()),
        },
        "data": {"train": _describe_rows(train), "validation": _describe_rows(val)},
        "trained": trained,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
    }


def _describe_rows(rows: Dataset) -> dict[str, Any]:
    content = json.dumps([rows[column][:] for column in ("id", "prompt", "references")])
    return {"rows": len(rows), "fingerprint": _hash(content)}


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
