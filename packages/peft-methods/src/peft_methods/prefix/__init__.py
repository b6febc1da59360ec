"""Prefix tuning."""

from .initialization import fold_prefix, initialize_prefix
from .method import Prefix

__all__ = ["Prefix", "fold_prefix", "initialize_prefix"]
