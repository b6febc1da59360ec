"""The processes of `accelerate launch` or `torchrun`, and which rows each of them does."""

import os
from dataclasses import dataclass
from datetime import timedelta

import numpy as np

from vlm_infer.errors import InferError

BLOCK = 256  # neighbours, which often show one image, stay together
PATIENCE = timedelta(days=30)  # one process may have the rows that take longest; a dead one ends the others


@dataclass(frozen=True)
class Processes:
    """This process's number among all, and its number on this machine, which is that of its accelerator."""

    rank: int = 0
    count: int = 1
    local_rank: int = 0

    @classmethod
    def of_environment(cls) -> "Processes":
        """As RANK, WORLD_SIZE and LOCAL_RANK say; one process without them. Several begin to know each other here.

        Raises InferError where it is not said at which address they meet.
        """
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
        found = cls(*(int(os.environ.get(name, default)) for name, default in zip(names, (0, 1, 0), strict=True)))
        if found.count > 1:
            if "MASTER_ADDR" not in os.environ:
                raise InferError("WORLD_SIZE is set, MASTER_ADDR is not: start with `accelerate launch` or `torchrun`")
            import torch.distributed

            # gloo, on any machine: nothing but meeting each other is done by it.
            torch.distributed.init_process_group("gloo", timeout=PATIENCE)
        return found

    @property
    def first(self) -> bool:
        return self.rank == 0

    def meet(self) -> None:
        """Wait until all processes are here."""
        if self.count > 1:
            import torch.distributed

            torch.distributed.barrier()

    def share(self, rows: int) -> np.ndarray:
        """The positions of this process's rows. All shares together are all rows, each once."""
        block = max(1, min(BLOCK, rows // (8 * self.count)))
        return np.flatnonzero(np.arange(rows) // block % self.count == self.rank)

    def device(self, asked: str) -> str:
        """The device asked for; of several CUDA devices the one of this process."""
        if self.count == 1 or asked not in ("auto", "cuda"):
            return asked
        import torch

        return f"cuda:{self.local_rank}" if torch.cuda.is_available() else asked
