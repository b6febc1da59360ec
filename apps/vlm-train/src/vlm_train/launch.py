"""What `accelerate launch` asks for, by the environment that it gives the processes."""

from collections.abc import Mapping
from dataclasses import dataclass

from vlm_train.deepspeed import DeepSpeed
from vlm_train.errors import ConfigError


@dataclass(frozen=True)
class Launch:
    """`sharded`: whether the base model is shared out, and `asked` what by, to name in an error."""

    asked: str = ""
    sharded: bool = False
    deepspeed: DeepSpeed | None = None


def read_launch(environment: Mapping[str, str]) -> Launch:
    """Raises ConfigError for what is not done here."""
    if _asks(environment, "ACCELERATE_USE_MEGATRON_LM"):
        raise ConfigError("--use_megatron_lm: not supported; use `accelerate launch --use_fsdp --fsdp_version 2`")
    if _asks(environment, "ACCELERATE_USE_DEEPSPEED"):
        deepspeed = DeepSpeed.of(environment)
        return Launch(deepspeed.where, deepspeed.stage == 3, deepspeed)
    if not _asks(environment, "ACCELERATE_USE_FSDP"):
        return Launch()
    if environment.get("FSDP_VERSION") != "2":
        raise ConfigError("--use_fsdp: only FSDP2 is done here; add --fsdp_version 2 to `accelerate launch`")
    for option in ("FSDP_OFFLOAD_PARAMS", "FSDP_ACTIVATION_CHECKPOINTING"):
        if _asks(environment, option):
            raise ConfigError(f"--{option.lower()} true: is not done here; leave it out")
    return Launch("--use_fsdp", sharded=True)


def _asks(environment: Mapping[str, str], name: str) -> bool:
    return environment.get(name, "false").lower() in ("true", "1", "yes")
