"""Bottleneck adapters."""

from .bottleneck import Bottleneck
from .method import Adapter

__all__ = ["Adapter", "Bottleneck"]
