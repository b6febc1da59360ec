"""The model of a run: what is planned, before data are read, and how it is loaded."""

import warnings
from dataclasses import replace
from functools import partial

import torch
from rich.console import Console

import vlm_models
from vlm_train.adapting.attaching import count_trained
from vlm_train.engine.optimizers import check_optimizer
from vlm_train.errors import ConfigError
from vlm_train.options.config import TrainConfig
from vlm_train.processes import Processes
from vlm_train.sharding import check_sharded


def plan_model(config: TrainConfig, processes: Processes) -> tuple[TrainConfig, vlm_models.Plan]:
    """How the model is going to be loaded, and the configuration with the quantization that was chosen.

    What it refuses, and what the method cannot be put on, is told before data are read, which may take minutes.
    """
    device = config.device if processes.count == 1 else str(processes.device)
    # "auto" is for what does not fit whole, as sharding is.
    quantization = "none" if processes.sharded and config.quantization == "auto" else config.quantization
    plan = vlm_models.plan(
        config.model, quantization, device, config.dtype, config.revision, trained=partial(count_trained, config)
    )
    config = replace(config, quantization=plan.quantization)
    check_optimizer(config, plan.device)
    launch = processes.launch
    if processes.sharded:
        check_sharded(config, launch.asked)
    if launch.deepspeed is not None:
        launch.deepspeed.check(config, processes.count, plan.dtype)
    return config, plan


def load_model(plan: vlm_models.Plan, config: TrainConfig, processes: Processes, console: Console) -> vlm_models.VLM:
    """The model as planned; what it is, is shown."""
    torch.manual_seed(config.seed)
    for line in filter(None, (processes.launch.deepspeed, plan)):
        console.print(str(line), highlight=False, soft_wrap=True, markup=False)
    if processes.sharded:
        plan = replace(plan, device=torch.device("cpu"))  # from where `shard` takes layer by layer
    vlm = plan.load()
    vlm.plain = config.plain
    if config.gradient_checkpointing:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # of a name that transformers 5.0 does not know
                vlm.model.gradient_checkpointing_enable()
        except ValueError as error:
            raise ConfigError(f"--gradient-checkpointing: {config.model} does not support it; leave it out") from error
    for note in vlm.notes:
        console.print(note, highlight=False, soft_wrap=True, markup=False)
    return vlm
