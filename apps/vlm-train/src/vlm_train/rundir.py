"""The folder of a run: everything that other commands need, nothing else."""

import hashlib
import json
import os
import platform
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

from datasets import Dataset

from vlm_data import Stream
from vlm_models import VLM
from vlm_runs.files import partial_name, write_whole
from vlm_train.environment import describe_environment
from vlm_train.errors import ConfigError
from vlm_train.options.config import TrainConfig

PACKAGES = ("peft-methods", "vlm-data", "vlm-models", "vlm-eval", "vlm-train", "torch", "transformers", "datasets")


class RunDir:
    """`runs/NAME`: run.json, adapter/, metrics.jsonl, predictions.jsonl, rejected.jsonl, README.md, pictures.

    `checkpoints/` is there while it trains.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    @property
    def adapter(self) -> Path:
        return self.folder / "adapter"

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    def read_json(self, name: str) -> dict:
        return json.loads((self.folder / name).read_text(encoding="utf-8"))

    def write_json(self, name: str, content: dict) -> None:
        self.write_text(name, json.dumps(content, indent=2, ensure_ascii=False) + "\n")

    def read_lines(self, name: str) -> list[dict]:
        return [json.loads(line) for line in (self.folder / name).read_text(encoding="utf-8").splitlines()]

    def write_lines(self, name: str, records: list[dict]) -> None:
        self.write_text(name, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))

    def write_text(self, name: str, text: str) -> None:
        self.write_bytes(name, text.encode())

    def write_bytes(self, name: str, content: bytes) -> None:
        write_whole(self.folder / name, content)

    def append(self, name: str, record: dict) -> None:
        with (self.folder / name).open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def size(self, name: str) -> int:
        """Bytes of a file that is appended to; they are on disk when this returns."""
        if not (self.folder / name).exists():
            return 0
        with (self.folder / name).open("a") as file:
            os.fsync(file.fileno())
            return file.tell()

    def truncate(self, name: str, size: int) -> None:
        """Drop what was appended to a file behind `size` bytes."""
        if (self.folder / name).exists():
            os.truncate(self.folder / name, size)


def choose_folder(config: TrainConfig) -> Path:
    """Where the run goes: `--out`, which must hold no run yet, or a new folder in `runs/`.

    With `--overwrite` a run in `--out` is accepted; `make_folder` removes it.
    """
    if config.out is not None:
        folder = Path(config.out)
        a_run = (folder / "run.json").exists()
        if folder.exists() and not _is_empty(folder) and not (a_run and config.overwrite):
            if not a_run:
                raise ConfigError(f"--out {folder} exists and is not empty; choose another folder or remove it")
            fix = "choose another folder, go on with it by --resume, or replace it by --overwrite"
            raise ConfigError(f"--out {folder} already holds a run; {fix}")
        return _writable(folder)
    base = Path("runs") / f"{Path(config.model).name}-{config.method}-{Path(config.data).stem}"
    number = 1
    while (folder := base if number == 1 else base.with_name(f"{base.name}-{number}")).exists():
        number += 1
    return _writable(folder)


def _writable(folder: Path) -> Path:
    """The same folder. Raises ConfigError, before a model is loaded, if it can be seen that it cannot be made."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise ConfigError(f"--out {folder}: {there} is a file; choose another folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ConfigError(f"--out {folder}: {there} cannot be written to; choose another folder")
    return folder


def _is_empty(folder: Path) -> bool:
    """Whether nothing is in it, but for what a run leaves that is killed before its run.json is there."""
    return folder.is_dir() and {path.name for path in folder.iterdir()} <= {partial_name("run.json")}


def make_folder(folder: Path) -> RunDir:
    """The folder of a new run, without what an older one has left in it. Raises ConfigError if it cannot be made."""
    try:
        if (folder / "run.json").exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out {folder}: {error.strerror or error}; choose another folder") from error
    return RunDir(folder)


def begun(folder: Path, record: dict) -> RunDir:
    """The folder of a run that goes on. Raises ConfigError if `record` is not of the model and rows it began with."""
    out = RunDir(folder)
    before = out.read_json("run.json")
    now = {"model": record["model"]["fingerprint"], **{part: rows for part, rows in record["data"].items()}}
    then = {"model": before["model"]["fingerprint"], **{part: rows for part, rows in before["data"].items()}}
    for name in now:
        if now[name] != then[name]:
            raise ConfigError(
                f"--resume {folder}: its {name} is no longer what it was ({then[name]} then, {now[name]} now); bring "
                "it back, or begin another run"
            )
    return out


def describe_run(config: TrainConfig, vlm: VLM, train: Dataset | Stream, val: Dataset, trained: dict[str, Any]) -> dict:
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
        "environment": describe_environment(vlm.device),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
    }


def _describe_rows(rows: Dataset | Stream) -> dict[str, Any]:
    if isinstance(rows, Stream):
        return {"rows": len(rows), "fingerprint": rows.fingerprint}
    content = json.dumps([rows[column][:] for column in ("id", "prompt", "references")])
    return {"rows": len(rows), "fingerprint": _hash(content)}


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
