"""LoRA with natural gradients in the rank space."""

from .linear import GRITLinear
from .method import GRIT, measuring

__all__ = ["GRIT", "GRITLinear", "measuring"]
