"""Adapt a vision-language model to your own images; the command is `vlm-train`."""

from vlm_train.errors import ConfigError
from vlm_train.options.config import TrainConfig

__all__ = ["ConfigError", "TrainConfig"]
