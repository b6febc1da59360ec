"""Quantization by bitsandbytes: QLoRA's 4-bit NormalFloat (Dettmers et al. 2023) and LLM.int8() (2022)."""

import torch
from torch import nn
from transformers import BitsAndBytesConfig

from vlm_models.errors import ModelError

QUANTIZATIONS = ("none", "nf4", "int8")


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
    if quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skip)
    raise ModelError(f"unknown quantization {quantization!r}; known: {', '.join(QUANTIZATIONS)}")


def keep_differentiable(model: nn.Module) -> None:
    """Keep 4-bit layers on a CPU as they were loaded.

    On a CPU with AVX-512 bfloat16, bitsandbytes re-packs the weights for inference at the first forward pass in
    evaluation mode, with rounded scales, and no gradient passes such a layer: evaluating would change what is trained.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
