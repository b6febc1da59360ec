"""What carries batches to models and outcomes back: this process, or the workers of a Ray cluster."""

import os
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from vlm_infer.errors import InferError
from vlm_infer.generation import Generation, Outcome
from vlm_infer.model import ModelSpec

if TYPE_CHECKING:
    from vlm_infer.answering import Answerer
    from vlm_infer.batches import RowBatch

Answered = tuple["RowBatch", list[Outcome]]
RETRIES = 3  # of a batch whose worker is lost; more, and it is the batch that kills them
RAY_COUNTS = 10_000  # parts of a GPU, which it rounds to: six of one sixth would be more than one
WAITING = 2  # batches at each worker: the one it is at, and the next


class Engine(Protocol):
    """batch_size: rows that are best given together."""

    batch_size: int

    def map(self, batches: Iterable["RowBatch"]) -> Iterator[Answered]:
        """Every batch with its outcomes, in any order."""


class Local:
    """The model in this process."""

    def __init__(self, answerer: "Answerer"):
        self._answer, self.batch_size = answerer, answerer.batch_size

    def map(self, batches: Iterable["RowBatch"]) -> Iterator[Answered]:
        for batch in batches:
            yield batch, self._answer(batch.positions, batch.rows)


class RayWorkers:
    """Workers of the Ray cluster that RAY_ADDRESS names, or of one on this machine; each holds the model.

    What a worker was at when it was lost is done again, by a new one in its place. Images that are named by path must
    be there for the workers too.

    workers: how many; None: one for each GPU of the cluster, or one. Raises InferError without Ray.
    """

    def __init__(
        self,
        spec: ModelSpec,
        generation: Generation,
        batch_size: int | None,
        attention: Path | None,
        workers: int | None,
    ):
        try:
            import ray
        except ImportError as error:
            raise InferError("--engine ray needs Ray: pip install 'vlm-infer[ray]'") from error
        self._ray = ray
        if not ray.is_initialized():
            own = {} if "RAY_ADDRESS" in os.environ else {"include_dashboard": False}
            ray.init(log_to_driver=False, logging_level="ERROR", **own)
        there = ray.cluster_resources()
        gpus = int(there.get("GPU", 0)) if spec.device in ("auto", "cuda") else 0
        count = workers or max(1, gpus)
        actor = ray.remote(_Worker).options(
            num_cpus=max(1, int(there.get("CPU", 1)) // count),
            num_gpus=gpu_share(gpus, count),
            max_restarts=-1,
            max_task_retries=RETRIES,
        )
        self.workers = [actor.remote(spec, generation, batch_size, attention) for _ in range(count)]
        self.batch_size = self._get(self.workers[0].batch_size.remote())  # and the model is known to load

    def map(self, batches: Iterable["RowBatch"]) -> Iterator[Answered]:
        waiting, free = {}, self.workers * WAITING
        for batch in batches:
            worker = free.pop(0)
            waiting[worker.answer.remote(batch.positions, batch.rows)] = worker, batch
            if not free:
                yield self._first(waiting, free)
        while waiting:
            yield self._first(waiting, free)

    def _first(self, waiting: dict, free: list) -> Answered:
        (done,), _ = self._ray.wait(list(waiting), num_returns=1)
        worker, batch = waiting.pop(done)
        free.append(worker)
        return batch, self._get(done)

    def _get(self, reference: Any) -> Any:
        try:
            return self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except self._ray.exceptions.RayError as error:
            reason = str(error).strip().splitlines()[0]
            raise InferError(f"Ray lost a worker {1 + RETRIES} times at one batch ({reason})") from error


def gpu_share(gpus: int, workers: int) -> float:
    """What of a GPU each worker takes, so that all find room: a worker is on one GPU, none on parts of two."""
    return RAY_COUNTS // -(-workers // gpus) / RAY_COUNTS if gpus else 0


class _Worker:
    """A process that answers. It loads the model when it is first needed: one in the place of a lost one does too."""

    def __init__(self, *arguments):
        self._arguments = arguments

    @cached_property
    def _answerer(self) -> "Answerer":
        from vlm_infer.answering import Answerer

        return Answerer(*self._arguments)

    def batch_size(self) -> int:
        return self._answerer.batch_size

    def answer(self, positions: list[int], rows: list[dict]) -> list[Outcome]:
        return self._answerer(positions, rows)
