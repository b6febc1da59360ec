"""Quantization by bitsandbytes: QLoRA's 4-bit NormalFloat (Dettmers et al. 2023) and LLM.int8() (2022)."""

import importlib.util
import logging
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig

from vlm_models.errors import ModelError

QUANTIZATIONS = ("none", "nf4", "int8", "auto")


def quantization_config(quantization: str, compute: torch.dtype, skip: list[str]) -> BitsAndBytesConfig:
    """The configuration for "nf4" or "int8"; modules named in `skip` keep their 16 or 32 bits."""
    if quantization == "nf4":
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=compute,
            llm_int8_skip_modules=skip,
        )
    return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skip)


def hush() -> None:
    """Keep out of the user's sight what bitsandbytes says at every pass through every layer."""
    # It asks for a package whose kernel is for the packing that `keep_differentiable` switches off;
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    # and 8-bit layers say that they round what comes in to float16, be it bfloat16 or float32.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)


def check_quantization(quantization: str) -> None:
    if quantization not in QUANTIZATIONS:
        raise ModelError(f"unknown quantization {quantization!r}; known: {', '.join(QUANTIZATIONS)}")


def check_installed(quantization: str) -> None:
    """Raise ModelError if bitsandbytes is needed and is not there."""
    if quantization in ("nf4", "int8") and importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError(f"quantization {quantization!r} needs bitsandbytes; install it or use quantization='none'")


def quantization_of(config: Any) -> str:
    """How the checkpoint of this configuration was saved: "none", "nf4", "int8" or the name of another method."""
    saved = getattr(config, "quantization_config", None)
    if saved is None:
        return "none"
    saved = saved if isinstance(saved, dict) else saved.to_dict()
    if saved.get("load_in_4bit"):
        return saved.get("bnb_4bit_quant_type", "fp4")
    return "int8" if saved.get("load_in_8bit") else str(saved.get("quant_method"))


def keep_differentiable(model: nn.Module) -> None:
    """Keep 4-bit layers on a CPU as they were loaded.

    On a CPU with AVX-512 bfloat16, bitsandbytes re-packs the weights for inference at the first forward pass in
    evaluation mode, with rounded scales, and no gradient passes such a layer: evaluating would change what is trained.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
