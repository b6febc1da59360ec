"""The adapters of a folder on a model: those of peft_methods, and kinds that only Hugging Face PEFT has."""

import json
import logging
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from os import PathLike
from pathlib import Path
from typing import Any, Protocol

from torch import nn

import peft_methods
from vlm_runs.errors import RunError
from vlm_runs.run import ADAPTER_CONFIG

VISION = "vision"  # the folder, in that of the adapter, of the one that vlm-train puts on the vision part


class Adapter(Protocol):
    """What is on a model: as much of `peft_methods.Attachment` as the commands use."""

    def disabled(self) -> AbstractContextManager[None]: ...
    def merge(self) -> None: ...
    def detach(self, keep_merged: bool = False) -> None: ...
    def save(self, folder: str | PathLike, base_model: str | None = None) -> None: ...


def adapter_folders(adapter: Path) -> list[Path]:
    """The folder of an adapter, and the one in it of a second adapter on the vision part, if there is one."""
    vision = adapter / VISION
    return [adapter, vision] if vision.is_dir() else [adapter]


def kind_of(folder: Path) -> str | None:
    """The `peft_type` of an adapter; None where its configuration cannot be read, which loading then tells."""
    try:
        config = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return str(config["peft_type"]) if isinstance(config, dict) and "peft_type" in config else None


def needs_peft(folder: Path) -> bool:
    """Whether an adapter is of a kind that only Hugging Face PEFT has."""
    kind = kind_of(folder)
    return kind is not None and kind not in ("LORA", "PREFIX_TUNING") and not kind.startswith("peft_methods.")


def put_on(model: nn.Module, adapter: Path) -> list[Adapter]:
    """Put the adapter in a folder on the model, and the one on the vision part, in evaluation mode.

    Where one fails, none stays. Raises AdapterError or TargetError of peft_methods, or RunError for one that needs PEFT
    and cannot have it.
    """
    done: list[Adapter] = []
    try:
        for folder in adapter_folders(adapter):
            done.append(_OfPeft(model, folder) if needs_peft(folder) else peft_methods.load(model, folder))
    except (peft_methods.AdapterError, peft_methods.TargetError, RunError):
        for one in reversed(done):
            one.detach()
        raise
    return done


def merge_for_good(adapters: Sequence[Adapter]) -> None:
    """Put those adapters into the weights that can be, and whose weights are not quantized; the others stay on them.

    Afterwards the model is as fast as its base. Meanwhile the weights that change are there twice. Kinds that only PEFT
    has stay: it may fail in the middle of it.
    """
    for one in adapters:
        if isinstance(one, peft_methods.Attachment):
            with suppress(peft_methods.AdapterError):
                one.merge()
                one.detach(keep_merged=True)


class _OfPeft:
    """An adapter of PEFT in a model. `merge` is for good."""

    def __init__(self, model: nn.Module, folder: Path):
        kind = kind_of(folder)
        # PEFT imports it, and it would warn of kernels for 4 bits on a CPU.
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
        try:
            import peft
        except ImportError as error:
            raise RunError(f"{folder} is a {kind} of Hugging Face PEFT: pip install 'vlm-runs[peft]'") from error
        try:
            if issubclass(peft.PEFT_TYPE_TO_CONFIG_MAPPING[kind], peft.PromptLearningConfig):
                raise RunError(
                    f"{folder}: {kind} puts tokens before the text, around the model; this cannot be used here"
                )
            if not any((folder / name).is_file() for name in ("adapter_model.safetensors", "adapter_model.bin")):
                raise RunError(f"{folder} holds no adapter_model.safetensors; copy it there, or train again")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # of names in transformers that PEFT still uses
                self._wrapped = peft.PeftModel.from_pretrained(model, str(folder))
        except (KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
            raise RunError(f"{folder}: PEFT cannot load it: {next(iter(str(error).splitlines()), kind)}") from error

    def disabled(self) -> AbstractContextManager[None]:
        return self._wrapped.disable_adapter()

    def merge(self) -> None:
        """Raises RunError where PEFT has no way to put this kind into the weights."""
        try:
            self._wrapped.merge_and_unload()
        except (AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise RunError(f"PEFT cannot put it into the weights: {reason}") from error

    def detach(self, keep_merged: bool = False) -> None:
        if not keep_merged:
            self._wrapped.unload()

    def save(self, folder: str | PathLike, base_model: str | None = None) -> None:
        config: Any = self._wrapped.peft_config["default"]
        config.base_model_name_or_path = base_model
        self._wrapped.save_pretrained(str(folder), save_embedding_layers=False)
