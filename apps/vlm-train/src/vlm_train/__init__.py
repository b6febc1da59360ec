"""Adapt a vision-language model to your own images; the command is `vlm-train`."""

from vlm_train.config import ConfigError, TrainConfig

__all__ = ["ConfigError", "TrainConfig"]
