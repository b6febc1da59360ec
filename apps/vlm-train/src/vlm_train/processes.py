"""One process or several that train together, as `accelerate launch` starts them.

Each takes its share of every step's rows, and holds the whole adapter; of the base model too, unless it is shared out
(`sharding.py`). Gradients are added up in one message a step, not by hooks in the backward pass: adapters are small,
and a parameter that gets no gradient in one process cannot make the others wait. So a run does not depend on how many
processes it has, but for the order of sums.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from vlm_train.errors import TrainError
from vlm_train.launch import read_launch

Result = TypeVar("Result")


class Processes:
    """This process, number `rank` of `count`; number 0, `main`, is the one that writes and speaks.

    Attributes: `launch`, what the launcher asks for; `before_meeting`, called before all do something at once.

    Raises ConfigError: the launcher asks for what is not done here.
    """

    def __init__(self, cpu: bool = False) -> None:
        self.rank, self.count, self.device = 0, 1, None
        self.before_meeting: Callable[[], object] = lambda: None
        self.launch = read_launch(os.environ)
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            from accelerate import PartialState  # takes time, and one process needs nothing of it

            # Else transformers reads the weights in one process alone, for the others to be given them later.
            os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
            with _without("ACCELERATE_USE_DEEPSPEED"):  # or it would want that package
                state = PartialState(cpu=cpu)
            self.rank, self.count, self.device = state.process_index, state.num_processes, state.device

    @property
    def sharded(self) -> bool:
        """Whether the base model is shared out."""
        return self.count > 1 and self.launch.sharded

    @property
    def main(self) -> bool:
        return self.rank == 0

    def share(self, items: Sequence[Any]) -> Sequence[Any]:
        """This process's part of a list: neighbours, about as many in each."""
        return items[len(items) * self.rank // self.count : len(items) * (self.rank + 1) // self.count]

    def sum(self, *numbers: float) -> list[float]:
        """Each number, added up over the processes."""
        if self.count == 1:
            return list(numbers)
        total = torch.tensor(numbers, dtype=torch.float64, device=self._sends_from)
        self._meet(dist.all_reduce, total)
        return total.tolist()

    def average_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Put the mean over the processes in place of each gradient; where one has none, it counts as zero."""
        if self.count == 1:
            return
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        for parameter in trained:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        wide = max(
            (torch.promote_types(parameter.dtype, torch.float32) for parameter in trained), key=lambda d: d.itemsize
        )
        message = torch.cat([parameter.grad.flatten().to(wide) for parameter in trained])
        self._meet(dist.all_reduce, message)
        sizes = [parameter.numel() for parameter in trained]
        for parameter, total in zip(trained, message.split(sizes), strict=True):
            parameter.grad.copy_(total.view_as(parameter) / self.count)

    def gather(self, items: list) -> list:
        """The processes' lists, one after the other, in every process."""
        if self.count == 1:
            return items
        parts: list[list] = [[] for _ in range(self.count)]
        self._meet(dist.all_gather_object, parts, items)
        return [item for part in parts for item in part]

    def from_main(self, function: Callable[[], Result]) -> Result:
        """What the function returns in the main process, in every process; what it raises is raised in all."""
        if self.count == 1:
            return function()
        told: list[Any] = [None, None]
        if self.main:
            try:
                told[0] = function()
            except Exception as error:
                told[1] = error
        self._meet(dist.broadcast_object_list, told, src=0)
        if told[1] is not None:
            raise told[1]
        return told[0]

    def wait(self) -> None:
        """Until all processes are here."""
        self.sum(0.0)

    @property
    def _sends_from(self) -> torch.device:
        return self.device if self.device is not None and self.device.type == "cuda" else torch.device("cpu")

    def _meet(self, collective: Callable[..., object], *arguments: Any, **options: Any) -> None:
        self.before_meeting()
        with self.watching():
            collective(*arguments, **options)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Inside, where all processes do the same, it is a TrainError if another one has ended."""
        try:
            yield
        except RuntimeError as error:
            if not isinstance(error, dist.DistError) and "gloo" not in str(error):  # whose errors have no class
                raise
            raise TrainError(
                "another process of the run has stopped; see what it said, then go on with --resume"
            ) from error


@contextmanager
def _without(name: str) -> Iterator[None]:
    """Inside, the environment lacks a variable."""
    value = os.environ.pop(name, None)
    try:
        yield
    finally:
        if value is not None:
            os.environ[name] = value
