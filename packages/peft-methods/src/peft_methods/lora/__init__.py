"""Low-rank adaptation."""

from .linear import LoRALinear
from .method import LoRA

__all__ = ["LoRA", "LoRALinear"]
