"""Where the model comes from: a run of vlm-train, an adapter with its base, or a plain model."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vlm_infer.errors import InferError
from vlm_runs import RunError, read_run
from vlm_runs.run import ADAPTER_CONFIG, MAX_IMAGE_TOKENS

if TYPE_CHECKING:
    import vlm_models

ADAPTER_FILES = (ADAPTER_CONFIG, "adapter_model.safetensors")


@dataclass(frozen=True)
class ModelSpec:
    """What to load. It is small, so that it can be sent to other machines.

    adapter: folder, or None for the model as it is. max_image_tokens: images that would take more are shrunk, for
    models that take images of any size. The other fields are options of `vlm_models.load`.
    """

    model: str
    adapter: Path | None = None
    quantization: str = "none"
    device: str = "auto"
    dtype: str = "auto"
    revision: str | None = None
    max_image_tokens: int = MAX_IMAGE_TOKENS

    def settings(self) -> dict[str, str | None]:
        """What texts depend on: names, and the content of what lies on this disk. Not the device."""
        from vlm_runs.adapters import adapter_folders

        folder = Path(self.model).expanduser()
        return {
            "model": self.model,
            "model_files": _hash_of(folder, ["config.json"]) if folder.is_dir() else None,
            "adapter": None
            if self.adapter is None
            else " ".join(_hash_of(one, ADAPTER_FILES) for one in adapter_folders(self.adapter)),
            "quantization": self.quantization,
            "dtype": self.dtype,
            "revision": self.revision,
            "max_image_tokens": self.max_image_tokens,
        }

    def load(self) -> "vlm_models.VLM":
        """The model in evaluation mode, its adapter in its weights where that can be.

        Raises RunError, ModelError or peft_methods' errors.
        """
        import transformers

        import vlm_data
        import vlm_models
        from vlm_models.device import free_memory
        from vlm_runs.adapters import merge_for_good, put_on

        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        vlm = vlm_models.load(self.model, self.quantization, self.device, self.dtype, self.revision)
        vlm_data.limit_image_tokens(vlm.processor, self.max_image_tokens)
        if self.adapter is not None:
            adapters, free = put_on(vlm.model, self.adapter), free_memory(vlm.device)
            # What is merged is there twice for a moment.
            if free is None or free > sum(parameter.nbytes for parameter in vlm.model.parameters()):
                merge_for_good(adapters)
        return vlm.eval()


def find_model(
    run: Path | None = None,
    adapter: str | None = None,
    model: str | None = None,
    revision: str | None = None,
    quantization: str | None = None,
    dtype: str | None = None,
    device: str = "auto",
    max_image_tokens: int | None = None,
) -> ModelSpec:
    """The model that these options name; what is left out is as the run or the adapter has it.

    Raises:
        InferError: options that do not go together, or a folder that is not what it should be.
    """
    if run is not None:
        if given := [name for name, value in (("adapter", adapter), ("model", model), ("revision", revision)) if value]:
            raise InferError(f"--run names its own model and adapter; leave out --{' and --'.join(given)}")
        return _of_run(run, quantization, dtype, device, max_image_tokens)
    if adapter is None and model is None:
        raise InferError("give a model: --run FOLDER, --adapter FOLDER --model BASE, or --model NAME")
    folder = None
    if adapter is not None:
        folder = _adapter_folder(adapter)
        model = model or _base_of(folder)
    of_images = max_image_tokens or MAX_IMAGE_TOKENS
    return ModelSpec(model, folder, quantization or "none", device, dtype or "auto", revision, of_images)


def _of_run(
    folder: Path, quantization: str | None, dtype: str | None, device: str, max_image_tokens: int | None
) -> ModelSpec:
    try:
        run = read_run(folder)
    except RunError as error:
        raise InferError(f"--run {error}") from error
    return ModelSpec(
        run.model,
        run.adapter,
        quantization or run.quantization,
        device,
        dtype or run.dtype,
        run.revision,
        max_image_tokens or run.max_image_tokens,
    )


def _adapter_folder(adapter: str) -> Path:
    """The folder of an adapter; one of the Hugging Face hub is downloaded into its cache."""
    folder = Path(adapter).expanduser()
    if folder.is_dir():
        if not (folder / ADAPTER_CONFIG).is_file():
            raise InferError(f"--adapter {adapter} holds no {ADAPTER_CONFIG}; give the folder of an adapter")
        return folder
    if adapter.count("/") != 1 or adapter.startswith((".", "/", "~")):
        raise InferError(f"--adapter {adapter}: neither a folder nor a hub id (owner/name)")
    from huggingface_hub import snapshot_download

    from vlm_models.hub import reading

    with reading(adapter):
        return Path(snapshot_download(adapter, allow_patterns=list(ADAPTER_FILES)))


def _base_of(folder: Path) -> str:
    try:
        base = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError):
        base = None
    if not base:
        raise InferError(f"--adapter {folder} does not name its base model; give it with --model")
    return base


def _hash_of(folder: Path, names: tuple[str, ...] | list[str]) -> str:
    """Of the content of some files, and of the names and sizes of all: weights of many gigabytes are not read."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        digest.update(f"{path.name} {path.stat().st_size}\n".encode())
        if path.name in names:
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
