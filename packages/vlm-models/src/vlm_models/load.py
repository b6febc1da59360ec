"""Load a model of any family by hub id, folder or tiny name."""

from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoProcessor,
    Blip2ForConditionalGeneration,
    GitForCausalLM,
    Qwen2VLForConditionalGeneration,
    VisionEncoderDecoderModel,
)

from vlm_models.device import choose_device, choose_dtype
from vlm_models.errors import ModelError
from vlm_models.families import Blip2, Chat, EncoderDecoder, Git
from vlm_models.pair import ImageTextPair
from vlm_models.quantize import keep_differentiable, quantization_config
from vlm_models.tiny import TINY, tiny_folder
from vlm_models.vlm import VLM

# transformers' model type: the class that loads it, the family that runs it
FAMILIES = {
    "git": (GitForCausalLM, Git),
    "blip-2": (Blip2ForConditionalGeneration, Blip2),
    "qwen2_vl": (Qwen2VLForConditionalGeneration, Chat),
    "vision-encoder-decoder": (VisionEncoderDecoderModel, EncoderDecoder),
}
UNREACHABLE = (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, HFValidationError, OSError)


def load(name: str, quantization: str = "none", device: str = "auto", dtype: str = "auto") -> VLM:
    """Load a vision-language model and its processor, in evaluation mode.

    Args:
        name: a hub id ("microsoft/git-base"), a folder written by `save_pretrained`, or a tiny name ("tiny-git").
        quantization: "none", "nf4" (4 bit, double quantization) or "int8", by bitsandbytes, of the language part.
        device: "auto" (CUDA, MPS, XPU, else CPU) or a torch device.
        dtype: "auto" (bfloat16 on an accelerator, float32 on a CPU), "float32", "bfloat16", "float16" or "float64".

    Raises:
        ModelError: the model is unknown, unreachable or of another family; the message says what can be loaded.
    """
    place = _find(name)
    chosen_device = choose_device(device)
    chosen_dtype = choose_dtype(dtype, chosen_device)
    config = _read(lambda: AutoConfig.from_pretrained(place), name)
    if config.model_type not in FAMILIES:
        raise ModelError(f"{name} is a {config.model_type!r} model; supported: {', '.join(FAMILIES)}")
    model_class, family = FAMILIES[config.model_type]
    options: dict[str, Any] = {"dtype": chosen_dtype}
    if quantization != "none":
        skip = [part for part in family.vision_parts if part != "query_tokens"] + ["lm_head", "output"]
        options["quantization_config"] = quantization_config(quantization, chosen_dtype, skip)
        options["device_map"] = {"": chosen_device}
    model = _read(lambda: model_class.from_pretrained(place, **options), name)
    if quantization == "none":
        model = model.to(chosen_device)
    else:
        keep_differentiable(model)
    processor_class = ImageTextPair if family is EncoderDecoder else AutoProcessor
    processor = _read(lambda: processor_class.from_pretrained(place), name)
    return family(model, processor, name).eval()


def _find(name: str) -> str:
    """The folder of a tiny name or a path; else the name itself, as a hub id."""
    if name in TINY:
        return str(tiny_folder(name))
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").exists():
            raise ModelError(f"{name} is a folder without config.json; expected what `save_pretrained` writes")
        return str(folder)
    if "/" not in name or name.startswith((".", "/", "~")):
        near = get_close_matches(name, TINY, n=1)
        hint = f"did you mean {near[0]}?" if near else f"tiny models: {', '.join(TINY)}"
        raise ModelError(f"no model {name!r}: neither a folder, a hub id (owner/name) nor a tiny model; {hint}")
    return name


def _read(read: Any, name: str) -> Any:
    """Run a `from_pretrained`; what can go wrong in it becomes one line."""
    try:
        return read()
    except UNREACHABLE as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(f"cannot load {name!r}: {reason} Models that need no download: {', '.join(TINY)}") from error
    except (ValueError, KeyError, SafetensorError, torch.OutOfMemoryError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(f"cannot load {name!r}: {reason}") from error
