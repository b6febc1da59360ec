"""Rows in, texts out: what a worker does, in this process or on another machine."""

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

import peft_methods
import vlm_data
import vlm_models
from vlm_infer.errors import InferError
from vlm_infer.generation import Generation, Outcome
from vlm_infer.model import ModelSpec
from vlm_infer.rows import Row
from vlm_runs import RunError

UserError = (
    vlm_data.DataError,
    vlm_data.ImageError,
    vlm_models.ModelError,
    peft_methods.TargetError,
    RunError,
    peft_methods.AdapterError,
)
_OF_A_ROW = (vlm_data.DataError, vlm_data.ImageError, vlm_models.ModelError)
SEEDS = 1_000_003  # a row's seed is this many times the job's, plus its position


class Answerer:
    """A loaded model that answers rows. batch_size None: as many rows as memory holds, found by halving."""

    def __init__(
        self, spec: ModelSpec, generation: Generation, batch_size: int | None = None, attention: Path | None = None
    ):
        self.vlm = spec.load()
        self.generation, self.attention = generation, attention
        self._collate = vlm_data.collator(self.vlm.processor, self.vlm.family, self.vlm.max_length)
        self._may_halve = batch_size is None
        self.batch_size = batch_size or (32 if self.vlm.device.type == "cpu" else 128)

    def __call__(self, positions: Sequence[int], rows: Sequence[Row]) -> list[Outcome]:
        """An outcome for each row. Rows that cannot be answered take none of the others with them.

        Raises:
            InferError: out of memory with one row, or with a batch size that was given.
        """
        outcomes: list[Outcome] = []
        while len(outcomes) < len(rows):
            some = slice(len(outcomes), len(outcomes) + self.batch_size)
            try:
                with vlm_models.out_of_memory_known():
                    outcomes += self._answer(positions[some], rows[some])
                continue
            except torch.OutOfMemoryError as error:
                size = len(rows[some])
                if not self._may_halve or size == 1:
                    fewer = f"--batch-size {size // 2} or auto" if size > 1 else "--quantization nf4 or --device cpu"
                    raise InferError(f"out of memory on {self.vlm.device} with {size} rows; use {fewer}") from error
            # Not while the error is handled: it holds the tensors that did not fit.
            self.batch_size = size // 2
            if self.vlm.device.type == "cuda":
                torch.cuda.empty_cache()
        return outcomes

    def _answer(self, positions: Sequence[int], rows: Sequence[Row]) -> list[Outcome]:
        """One batch; where a row in it cannot be answered, its halves."""
        started = time.perf_counter()
        try:
            batch = self.vlm.to_device(self._collate.prompts(rows))
            answers = self.vlm.generate(batch, **self._options(positions))
        except _OF_A_ROW as error:
            if len(rows) == 1:
                return [Outcome(None, None, time.perf_counter() - started, str(error))]
            half = len(rows) // 2
            return [*self._answer(positions[:half], rows[:half]), *self._answer(positions[half:], rows[half:])]
        seconds = (time.perf_counter() - started) / len(rows)
        if self.attention is not None:
            maps = vlm_models.attention_maps(self.vlm, batch, answers)
            for position, row, answer, own in zip(positions, rows, answers, maps, strict=True):
                name = Path(row["image"]["path"] or row["id"]).stem
                drawing = vlm_models.draw_answer(self.vlm, answer, own, vlm_data.decode(row["image"]))
                drawing.save(self.attention / f"{position + 1:05d}-{name}.png")
        return [Outcome(answer.text, sum(answer.token_logprobs), seconds) for answer in answers]

    def _options(self, positions: Sequence[int]) -> dict[str, Any]:
        options = asdict(self.generation)
        return {**options, "seed": [options["seed"] * SEEDS + position for position in positions]}
