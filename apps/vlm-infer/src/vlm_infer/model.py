"""Where the model comes from: a run of vlm-train, an adapter with its base, or a plain model."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm_infer.errors import InferError

if TYPE_CHECKING:
    import vlm_models

MAX_IMAGE_TOKENS = 1024
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


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
        folder = Path(self.model).expanduser()
        return {
            "model": self.model,
            "model_files": _hash_of(folder, ["config.json"]) if folder.is_dir() else None,
            "adapter": None
            if self.adapter is None
            else " ".join(_hash_of(one, ADAPTER_FILES) for one in self._adapters),
            "quantization": self.quantization,
            "dtype": self.dtype,
            "revision": self.revision,
            "max_image_tokens": self.max_image_tokens,
        }

    @property
    def _adapters(self) -> list[Path]:
        """The adapter, and the one on the vision part that a run may have in it."""
        if self.adapter is None:
            return []
        vision = self.adapter / "vision"
        return [self.adapter, vision] if vision.is_dir() else [self.adapter]

    def load(self) -> "vlm_models.VLM":
        """The model with its adapter, in evaluation mode. Raises `vlm_models.ModelError` or peft_methods' errors."""
        import transformers

        import vlm_data
        import vlm_models

        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        vlm = vlm_models.load(self.model, self.quantization, self.device, self.dtype, self.revision)
        vlm_data.limit_image_tokens(vlm.processor, self.max_image_tokens)
        for folder in self._adapters:
            _attach(vlm, folder)
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


def _attach(vlm: "vlm_models.VLM", folder: Path) -> None:
    """Put an adapter on a model: by peft_methods, or by PEFT itself one of a kind that only PEFT has.

    Raises AdapterError, or InferError for one that needs PEFT and cannot have it.
    """
    import peft_methods

    kind = _config_of(folder).get("peft_type")
    if kind is None or kind in ("LORA", "PREFIX_TUNING") or kind.startswith("peft_methods."):
        peft_methods.load(vlm.model, folder)
        return
    try:
        import peft
    except ImportError as error:
        raise InferError(f"{folder} is a {kind} of Hugging Face PEFT: pip install 'vlm-infer[peft]'") from error
    try:
        if issubclass(peft.PEFT_TYPE_TO_CONFIG_MAPPING[kind], peft.PromptLearningConfig):
            raise InferError(
                f"{folder}: {kind} puts tokens before the text, around the model; this cannot be used here"
            )
        peft.PeftModel.from_pretrained(vlm.model, str(folder))  # puts its modules into the model that it is given
    except (KeyError, OSError, RuntimeError, TypeError) as error:
        raise InferError(f"{folder}: PEFT cannot load it: {next(iter(str(error).splitlines()), kind)}") from error


def _of_run(
    run: Path, quantization: str | None, dtype: str | None, device: str, max_image_tokens: int | None
) -> ModelSpec:
    if not (run / "run.json").is_file():
        raise InferError(f"--run {run} is no run: it holds no run.json; give a folder that vlm-train wrote")
    try:
        record = json.loads((run / "run.json").read_text(encoding="utf-8"))
        config = record["config"]
        spec = ModelSpec(
            config["model"],
            run / "adapter",
            quantization or config["quantization"],
            device,
            dtype or config["dtype"],
            config.get("revision"),
            max_image_tokens or config.get("max_image_tokens", MAX_IMAGE_TOKENS),
        )
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise InferError(f"--run {run}: run.json is not one that vlm-train wrote") from error
    if not spec.adapter.is_dir():
        raise InferError(f"--run {run} has no adapter: its training is {record.get('status')}; train again")
    return spec


def _adapter_folder(adapter: str) -> Path:
    """The folder of an adapter; one of the Hugging Face hub is downloaded into its cache."""
    folder = Path(adapter).expanduser()
    if folder.is_dir():
        if not (folder / ADAPTER_FILES[0]).is_file():
            raise InferError(f"--adapter {adapter} holds no {ADAPTER_FILES[0]}; give the folder of an adapter")
        return folder
    if adapter.count("/") != 1 or adapter.startswith((".", "/", "~")):
        raise InferError(f"--adapter {adapter}: neither a folder nor a hub id (owner/name)")
    from huggingface_hub import snapshot_download

    from vlm_models.hub import reading

    with reading(adapter):
        return Path(snapshot_download(adapter, allow_patterns=list(ADAPTER_FILES)))


def _base_of(folder: Path) -> str:
    base = _config_of(folder).get("base_model_name_or_path")
    if not base:
        raise InferError(f"--adapter {folder} does not name its base model; give it with --model")
    return base


def _config_of(folder: Path) -> dict[str, Any]:
    """What the adapter says of itself; nothing where it cannot be read, which loading it then tells."""
    try:
        config = json.loads((folder / ADAPTER_FILES[0]).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


def _hash_of(folder: Path, names: tuple[str, ...] | list[str]) -> str:
    """Of the content of some files, and of the names and sizes of all: weights of many gigabytes are not read."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        digest.update(f"{path.name} {path.stat().st_size}\n".encode())
        if path.name in names:
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
