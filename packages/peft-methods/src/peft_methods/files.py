"""The two files of an adapter folder, `adapter_config.json` and `adapter_model.safetensors`: never half-written.

Writing goes to a temporary folder beside them, is synced to disk and renamed into place. The old configuration goes
first and the new one comes last, so an interrupted save is a folder without an adapter, never a mixture of two.
"""

import json
import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from .errors import AdapterError

CONFIG, WEIGHTS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"


@dataclass
class AdapterFiles:
    """`config` as in the JSON file, `tensors` and `metadata` (strings by name) as in the safetensors file."""

    config: dict[str, Any]
    tensors: dict[str, Tensor]
    metadata: dict[str, str] = field(default_factory=dict)


def write_adapter(folder: str | os.PathLike, files: AdapterFiles) -> None:
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".writing-") as writing:
        contiguous = {key: tensor.contiguous() for key, tensor in files.tensors.items()}
        # "format" tells transformers and peft that the tensors are torch's. Not save_file: it hides files from others.
        Path(writing, WEIGHTS).write_bytes(_ordered(save(contiguous, files.metadata | {"format": "pt"})))
        Path(writing, CONFIG).write_text(json.dumps(files.config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        for name in (WEIGHTS, CONFIG):
            _sync(Path(writing, name))
        (folder / CONFIG).unlink(missing_ok=True)
        for name in (WEIGHTS, CONFIG):
            os.replace(Path(writing, name), folder / name)
    if os.name == "posix":  # elsewhere a folder cannot be opened
        _sync(folder)


def read_adapter(folder: str | os.PathLike) -> AdapterFiles:
    """The files of an adapter folder, tensors on the CPU. Raises AdapterError where there is none."""
    folder = Path(folder)
    if not (folder / CONFIG).is_file():
        raise AdapterError(f"{folder}: holds no adapter, {CONFIG} is missing; give the folder that save() wrote")
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        assert isinstance(config, dict)
    except (ValueError, AssertionError):
        raise AdapterError(f"{folder / CONFIG}: not a JSON object; save the adapter again") from None
    if not (folder / WEIGHTS).is_file() and (folder / PICKLE).is_file():
        raise AdapterError(
            f"{folder / PICKLE}: a pickle can run code and is not read; load it where you trust it with peft and "
            "save_pretrained() it, which writes safetensors"
        )
    try:
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            return AdapterFiles(config, {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {})  # noqa: SIM118
    except FileNotFoundError:
        raise AdapterError(f"{folder}: {WEIGHTS} is missing; save the adapter again") from None
    except SafetensorError as error:
        raise AdapterError(f"{folder / WEIGHTS}: not a safetensors file ({error}); save the adapter again") from None


def _ordered(content: bytes) -> bytes:
    """A safetensors file with its metadata sorted: safetensors writes them in another order each time."""
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    return content[:8] + text.ljust(size) + content[8 + size :]


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDWR if path.is_file() else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
