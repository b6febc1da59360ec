"""Load a model of any family by hub id, folder or tiny name."""

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, PreTrainedConfig

from vlm_models.device import choose_device, choose_dtype, free_memory
from vlm_models.errors import ModelError
from vlm_models.families import Blip2, Blip2Seq2Seq, Chat, EncoderDecoder, Git
from vlm_models.hub import reading
from vlm_models.memory import Memory, predict_memory
from vlm_models.pair import ImageTextPair
from vlm_models.quantize import (
    check_installed,
    check_quantization,
    hush,
    keep_differentiable,
    quantization_config,
    quantization_of,
)
from vlm_models.tiny import TINY, tiny_folder
from vlm_models.vlm import VLM

CHAT = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "smolvlm", "idefics3", "llava_onevision", "gemma3", "internvl")
# transformers' model type: the family that runs it
FAMILIES = {"git": Git, "blip-2": Blip2, **dict.fromkeys(CHAT, Chat), "vision-encoder-decoder": EncoderDecoder}


@dataclass(frozen=True)
class Plan:
    """How a model is going to be loaded, and what memory training it will take. `str` says so in one line.

    `place` is a folder or hub id; `hub` are options for reading from the hub.
    """

    name: str
    place: str
    hub: dict[str, Any]
    config: PreTrainedConfig
    family: type[VLM]
    device: torch.device
    dtype: torch.dtype
    quantization: str
    reason: str
    memory: Memory
    whole_parts: tuple[str, ...]  # names of the modules that stay as they are when the rest is quantized

    def __str__(self) -> str:
        number_format = str(self.dtype).removeprefix("torch.")
        how = number_format if self.quantization == "none" else f"{self.quantization} beside {number_format}"
        return f"{self.name} on {self.device.type} in {how}{self.reason}; predicted memory: {self.memory}"

    def load(self) -> VLM:
        """Carry it out; see `load`."""
        options: dict[str, Any] = {"config": self.config, "dtype": self.dtype, **self.hub}
        if self.quantization != "none":
            hush()
            options["device_map"] = {"": self.device}
            if quantization_of(self.config) == "none":
                options["quantization_config"] = quantization_config(
                    self.quantization, self.dtype, list(self.whole_parts)
                )
        with reading(self.name):
            model, found = AutoModelForImageTextToText.from_pretrained(self.place, output_loading_info=True, **options)
        # A ViT's pooler is not used here, and not in every checkpoint.
        missing = sorted(key for key in found["missing_keys"] if "pooler" not in key)
        if missing:
            raise ModelError(
                f"cannot load {self.name!r}: {len(missing)} weights are not in it, {missing[0]} among them"
            )
        if self.quantization == "none":
            model = model.to(self.device)
        else:
            keep_differentiable(model)
        with reading(self.name):
            reader = ImageTextPair if self.family is EncoderDecoder else AutoProcessor
            processor = reader.from_pretrained(self.place, **self.hub)
        tokenizer = processor.tokenizer
        # transformers makes one of special tokens alone where its files are not there.
        if not tokenizer.get_vocab().keys() - tokenizer.get_added_vocab().keys() - set(tokenizer.all_special_tokens):
            raise ModelError(f"cannot load {self.name!r}: its tokenizer has no words; tokenizer.json is missing")
        return self.family(model, processor, self.name).eval()


def plan(
    name: str,
    quantization: str = "none",
    device: str = "auto",
    dtype: str = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
    trained: Callable[[VLM], int | None] | None = None,
) -> Plan:
    """What `load` will do with these options, and its `load()` does. Of the model only its configuration is read.

    trained: says how many parameters of the model are going to be trained, asked with a `skeleton` that it may change.
    Memory depends on it; without it, or where it says None, LoRA's usual share is taken.

    Raises:
        ModelError: the model is unknown, unreachable or of another family, or an option is.
    """
    check_quantization(quantization)
    place, hub = _find(name), {"revision": revision, "trust_remote_code": trust_remote_code}
    chosen_device = choose_device(device)
    chosen_dtype = choose_dtype(dtype, chosen_device)
    with reading(name):
        config = AutoConfig.from_pretrained(place, **hub)
    outline = skeleton(config, name)
    count = None if trained is None else trained(skeleton(config, name))
    saved, reason = quantization_of(config), ""
    if saved != "none":
        if quantization not in ("none", "auto", saved):
            raise ModelError(f"{name} was saved in {saved}; it cannot be loaded in {quantization}, choose {saved}")
        quantization, reason = saved, " (as it was saved)"
    elif quantization == "auto":
        free = free_memory(chosen_device)
        needed = predict_memory(outline, dtype=chosen_dtype, trained=count).total
        quantization = "none" if free is None or needed <= free else "nf4"
        if free is None:
            reason = " (not quantized: 4 bits would be slow there)"
        else:
            reason = f" ({needed / 2**30:.1f} GiB needed unquantized, {free / 2**30:.1f} free)"
    check_installed(quantization)
    parts = [part for part, module in outline.model.named_modules() if part in outline.vision_parts]
    parts += [part for part, module in outline.model.named_modules() if module is outline.head]
    memory = predict_memory(outline, quantization, chosen_dtype, trained=count)
    whole = tuple(parts)
    return Plan(
        name, place, hub, config, type(outline), chosen_device, chosen_dtype, quantization, reason, memory, whole
    )


def load(
    name: str,
    quantization: str = "none",
    device: str = "auto",
    dtype: str = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> VLM:
    """Load a vision-language model and its processor, in evaluation mode.

    Args:
        name: a hub id ("microsoft/git-base"), a folder written by `save_pretrained`, or a tiny name ("tiny-git").
        quantization: "none", "nf4" (4 bit, double quantization) or "int8", by bitsandbytes, of the language part;
            "auto" is "nf4" on a GPU whose free memory does not suffice for training with LoRA, else "none". A folder
            that was saved quantized is loaded as it was saved. `plan` tells what "auto" will be.
        device: "auto" (CUDA, MPS, XPU, else CPU) or a torch device.
        dtype: "auto" (bfloat16 on an accelerator, float32 on a CPU), "float32", "bfloat16", "float16" or "float64".
        revision: branch, tag or commit of a hub id.
        trust_remote_code: whether code that comes with the model may run.

    `notes` of the model say what was completed in it.

    Raises:
        ModelError: the model is unknown, unreachable, incomplete or of another family; the message says what to do.
    """
    return plan(name, quantization, device, dtype, revision, trust_remote_code).load()


def skeleton(config: PreTrainedConfig, name: str = "") -> VLM:
    """A model without weights (on the meta device) and without processor: its parts, sizes and targets.

    Raises ModelError: no family of this package runs models of this configuration.
    """
    family = _family(config, name or config.model_type)
    with reading(name), torch.device("meta"):
        return family(AutoModelForImageTextToText.from_config(config), None, name)


def _family(config: PreTrainedConfig, name: str) -> type[VLM]:
    if config.model_type not in FAMILIES:
        raise ModelError(f"{name} is a {config.model_type!r} model; supported: {', '.join(FAMILIES)}")
    family = FAMILIES[config.model_type]
    return Blip2Seq2Seq if family is Blip2 and not config.use_decoder_only_language_model else family


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
