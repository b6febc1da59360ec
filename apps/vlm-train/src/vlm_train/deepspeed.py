"""DeepSpeed configurations, as they come with a launch: read for what they say, and done by torch.

ZeRO 3 shares the base model out, and so does FSDP2 (`sharding.py`). ZeRO 1 and 2 keep it whole in each process; what
they share out, gradients and moments of what is trained, is small for adapters and whole in each process here. What is
said about rows, clipping and number formats has to agree with the run's options; how it communicates and logs is
DeepSpeed's own and means nothing here. All else is refused.

Rajbhandari et al. 2020, "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models".
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vlm_train.errors import ConfigError
from vlm_train.options.config import TrainConfig

READ = (
    *("zero_optimization", "train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"),
    *("gradient_clipping", "bf16", "fp16", "optimizer"),
)
ITS_OWN = (  # communication, logging, and what DeepSpeed checks about itself
    *("communication_data_type", "prescale_gradients", "gradient_predivide_factor", "data_types", "comms_logger"),
    *("steps_per_print", "wall_clock_breakdown", "memory_breakdown", "dump_state", "flops_profiler", "tensorboard"),
    *("wandb", "csv_monitor", "comet", "checkpoint", "zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer"),
)
FORMATS = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class DeepSpeed:
    """`where` the configuration comes from, the `stage` of ZeRO, and the whole of it by its keys."""

    where: str
    stage: int
    said: Mapping[str, Any]

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> "DeepSpeed":
        """That of a launch: in a file, or in options of the launch. Raises ConfigError for what is not done here."""
        path = environment.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "none")
        where, said = ("--use_deepspeed", _options(environment)) if path == "none" else (path, _file(path))
        zero = _section(said, "zero_optimization")
        stage = zero.get("stage", 0)
        if stage not in (0, 1, 2, 3):
            raise ConfigError(f"{where}: stage {stage!r} of ZeRO is unknown; write 0, 1, 2 or 3")
        for part in ("offload_param", "offload_optimizer"):
            if _section(zero, part).get("device", "none") not in ("none", None):
                raise ConfigError(f"{where}: {part} is not done here; take it out, and use --quantization nf4")
        for key in said:
            if key not in (*READ, *ITS_OWN):
                raise ConfigError(f"{where}: {key!r} is not done here; take it out")
        optimizer = _section(said, "optimizer")
        given = [key for key, value in _section(optimizer, "params").items() if value != "auto"]
        if given or optimizer.get("type", "AdamW") not in ("Adam", "AdamW"):
            raise ConfigError(
                f"{where}: 'optimizer': say it by --optimizer, --learning-rate and --weight-decay instead"
            )
        return cls(where, stage, said)

    def __str__(self) -> str:
        how = "shared out by FSDP2" if self.stage == 3 else "whole in each process"
        return f"{self.where}, ZeRO {self.stage}: done by torch, the base model {how}"

    def check(self, config: TrainConfig, processes: int, dtype: torch.dtype) -> None:
        """Raise ConfigError for options of a run that say something else. `dtype` is that of the model."""
        if config.method == "full" and self.stage > 0:
            raise ConfigError(
                f"{self.where}, ZeRO {self.stage}: gradients and moments of --method full are not shared out here; use "
                "--method lora, or start it by `accelerate launch --multi_gpu`"
            )
        for key, name, times, by in (
            ("gradient_accumulation_steps", "accumulate", 1, 1),
            ("train_micro_batch_size_per_gpu", "batch_size", processes, 1),
            ("train_batch_size", "batch_size", 1, config.accumulate),
            ("gradient_clipping", "max_gradient_norm", 1, 1),
        ):
            said = self.said.get(key, "auto")
            if not isinstance(said, int | float) and said != "auto":
                raise ConfigError(f'{self.where}: {key} {said!r} is neither a number nor "auto"')
            if said != "auto" and said * times / by != getattr(config, name):
                option = f"--{name.replace('_', '-')} {said * times / by:g}"
                raise ConfigError(f'{self.where}: {key} {said} is {option} here; give that, or write "auto" there')
        for key, needed in FORMATS.items():
            if _section(self.said, key).get("enabled") is True and dtype != needed:
                option = f"--dtype {str(needed).removeprefix('torch.')}"
                raise ConfigError(f'{self.where}: {key} is {option} here; give that, or write "auto" there')


def _options(environment: Mapping[str, str]) -> dict[str, Any]:
    """The configuration that options of `accelerate launch`, or its own configuration file, describe."""
    zero: dict[str, Any] = {"stage": int(environment.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2"))}
    for part in ("param", "optimizer"):
        zero[f"offload_{part}"] = {"device": environment.get(f"ACCELERATE_DEEPSPEED_OFFLOAD_{part.upper()}_DEVICE")}
    said: dict[str, Any] = {"zero_optimization": zero}
    steps = environment.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    if steps not in ("1", "auto"):  # 1 is what `accelerate config` writes without being asked
        said["gradient_accumulation_steps"] = int(steps)
    clipping = environment.get("ACCELERATE_GRADIENT_CLIPPING", "none")
    if clipping not in ("none", "auto"):
        said["gradient_clipping"] = float(clipping)
    return said


def _section(said: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """An object of the configuration; empty where there is none."""
    section = said.get(key)
    return section if isinstance(section, dict) else {}


def _file(path: str) -> dict[str, Any]:
    try:
        said = json.loads(Path(path).read_text())
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; name a DeepSpeed configuration that is there") from error
    except ValueError as error:
        raise ConfigError(f"{path}: no JSON ({error})") from error
    if not isinstance(said, dict):
        raise ConfigError(f"{path}: no DeepSpeed configuration, which is a JSON object")
    return said
