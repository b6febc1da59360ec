"""The optimizers by the names that `--optimizer` takes."""

from collections.abc import Sequence
from typing import Any

import torch

from vlm_train.errors import ConfigError
from vlm_train.options.config import TrainConfig

MOMENTUM = 0.9  # of SGD
FUSED = ("cpu", "cuda", "mps", "xpu")  # devices on which torch computes AdamW's step in one kernel


def check_optimizer(config: TrainConfig, device: torch.device) -> None:
    """Raise ConfigError, before a model is loaded, if the optimizer does not run on this device."""
    if config.optimizer == "adamw8bit" and device.type != "cuda":
        raise ConfigError(f"--optimizer adamw8bit: runs on CUDA, the model is on {device.type}; use --optimizer adamw")


def make_optimizer(groups: Sequence[dict[str, Any]], config: TrainConfig) -> torch.optim.Optimizer:
    """The optimizer as configured, over groups of parameters that have their learning rates.

    Weight decay is on matrices alone: it has no reason on biases and norms (Radford et al. 2018, "Improving Language
    Understanding by Generative Pre-Training", section 4.1).
    """
    groups = [part for group in groups for part in _decayed(group, config.weight_decay)]
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=MOMENTUM)
    if config.optimizer == "adamw8bit":
        import bitsandbytes  # slow to import

        return bitsandbytes.optim.AdamW8bit(groups)
    devices = {parameter.device.type for group in groups for parameter in group["params"]}
    return torch.optim.AdamW(groups, fused=devices <= set(FUSED))


def _decayed(group: dict[str, Any], weight_decay: float) -> list[dict[str, Any]]:
    """The group's matrices, with weight decay, and the rest of it, without; what is empty is left out."""
    matrices = [parameter for parameter in group["params"] if parameter.ndim >= 2]
    others = [parameter for parameter in group["params"] if parameter.ndim < 2]
    parts = ((matrices, weight_decay), (others, 0.0))
    return [{**group, "params": parameters, "weight_decay": decay} for parameters, decay in parts if parameters]
