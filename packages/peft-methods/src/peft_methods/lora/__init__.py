"""Low-rank adaptation."""

from .conv import LoRAConv2d
from .dora import DoRALinear
from .embedding import LoRAEmbedding
from .linear import LoRALinear
from .method import LoRA

__all__ = ["DoRALinear", "LoRA", "LoRAConv2d", "LoRAEmbedding", "LoRALinear"]
