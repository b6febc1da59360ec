"""The base model shared out over the processes by FSDP2, as `accelerate launch --use_fsdp --fsdp_version 2` asks, or
ZeRO 3 of a DeepSpeed configuration.

Of every layer of the language model each process holds its part, and all gather the whole of it while it runs. Whole in
each process are what is trained, so that optimizer, checkpoints and the averaging of gradients are what they are
without sharding; and embeddings, head and vision part, which are also read outside of their layers, as by the
fingerprint that cached features are known by.

A layer can only be gathered by all at once, but the processes do not run the same number of layers: they generate texts
of other lengths. So each says which layer it needs before that runs, the lowest of these is gathered, and who needs
none takes part until all are where they meet (`Processes`).
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

from vlm_models import VLM
from vlm_train.errors import ConfigError
from vlm_train.options.config import AUTO, TrainConfig
from vlm_train.processes import Processes


def shard(vlm: VLM, trained: Iterable[nn.Parameter], processes: Processes) -> None:
    """Share out what is not `trained` in the language model's layers, and bring the rest to the process's device.

    The model may be on the CPU still: a layer goes to the device whole, before this process's part of it stays there.
    """
    from torch.distributed.fsdp import fully_shard

    layers = list(layers_of(vlm))
    mesh = init_device_mesh(processes.device.type, (processes.count,))
    for layer in layers:
        fully_shard(layer, mesh=mesh, reshard_after_forward=True, ignored_params=set(trained))
    vlm.model.to(processes.device)
    # The root shares nothing out. It lets the layers gather the next one while one computes.
    fully_shard(vlm, mesh=mesh, ignored_params=set(vlm.parameters()))
    for module in vlm.modules():  # else transformers generates in step, and waits for processes that have no rows left
        module._is_fsdp_managed_module = False
    # What the backward pass gathers ahead must be the same in all processes, but by default depends on what ran before.
    for before, layer in pairwise([layers[0], *layers]):
        layer.set_modules_to_backward_prefetch([before])
    _take_turns(layers, processes)
    _initialize(vlm)


def is_sharded(vlm: VLM) -> bool:
    return hasattr(vlm, "unshard")


def check_sharded(config: TrainConfig, asked: str) -> None:
    """Raise ConfigError for options that do not go with sharding, which was `asked` for by this."""
    if torch.__version__ < "2.7":
        raise ConfigError(f"{asked}: needs torch 2.7 or later, this is {torch.__version__}")
    without = "or start it by `accelerate launch --multi_gpu`"
    if config.method == "full" and config.targets != "vision":
        raise ConfigError(f"--method full: {asked} shares out what is frozen; use --method lora, {without}")
    if config.quantization != "none":
        raise ConfigError(
            f"--quantization {config.quantization}: quantized weights are not shared out by {asked}; use "
            f"--quantization none, {without}"
        )
    if config.gradient_checkpointing:
        raise ConfigError(
            f"--gradient-checkpointing: {asked} gathers each layer once in a pass; leave it out, {without}"
        )
    if config.batch_size == AUTO:
        raise ConfigError(f"--batch-size auto: with {asked} no process can try sizes by itself; give a number")


def layers_of(vlm: VLM) -> Iterator[nn.Module]:
    """The layers of the language model: what stands in the outermost lists of modules there, and is called."""
    lists: list[str] = []
    for name, module in vlm.model.named_modules():
        inside = f"{name}.".startswith(tuple(f"{part}." for part in vlm.language_parts))
        if isinstance(module, nn.ModuleList) and inside and not name.startswith(tuple(lists)):
            lists.append(f"{name}.")
            yield from module


def _take_turns(layers: Sequence[nn.Module], processes: Processes) -> None:
    """Let each layer run when it is the lowest that any process needs, and be gathered by the others then."""
    group = dist.new_group(backend="gloo")  # numbers on the CPU, so that nobody waits for an accelerator

    def lowest(needed: int) -> int:
        told = torch.tensor(needed)
        with processes.watching():
            dist.all_reduce(told, dist.ReduceOp.MIN, group=group)
        return int(told)

    def wait_for(own: int) -> None:
        while (turn := lowest(own)) < own:
            layers[turn].unshard()
            layers[turn].reshard()

    def before_layer(number: int) -> None:
        if not torch.is_grad_enabled():
            layers[number].reshard()  # a pass that ran out of memory has left it gathered, here alone
        wait_for(number)

    for number, layer in enumerate(layers):
        # First of its hooks, before the one that gathers.
        layer.register_forward_pre_hook(lambda *_, number=number: before_layer(number), prepend=True)
    processes.before_meeting = lambda: wait_for(len(layers))


def _initialize(vlm: VLM) -> None:
    """Let FSDP see that the whole model is its root: it takes for one what runs first."""
    vlm.forward = lambda: None
    vlm()
    del vlm.forward
