"""How far a run has come: all that its checkpoints hold beside the trained parameters and the optimizer."""

import math
from array import array
from collections import deque
from collections.abc import Iterable
from dataclasses import astuple, dataclass, field, fields
from typing import Any

import torch

from vlm_train.engine.evaluate import Evaluation
from vlm_train.engine.loop import Step

RECENT = 20  # steps of which all is kept, to tell the speed


@dataclass(frozen=True)
class Answers:
    """What an evaluation found, without what follows from it: of the state after `step`, 0 being the base model."""

    step: int
    predictions: list[str]
    loss: float

    @classmethod
    def of(cls, step: int, evaluation: Evaluation) -> "Answers":
        return cls(step, evaluation.predictions, evaluation.loss)


def _recent(steps: Iterable[Step] = ()) -> deque[Step]:
    return deque(steps, maxlen=RECENT)


def _numbers() -> array:
    return array("d")


@dataclass
class State:
    """`losses` and `rates` have a number for each step done: its loss, NaN if it was skipped, and its learning rate.

    skipped: steps whose loss or gradient was not finite; skipped_in_a_row: those since the last good one. stale:
    evaluations since the best one. seconds: spent on training until now.
    """

    recent: deque[Step] = field(default_factory=_recent)
    losses: array = field(default_factory=_numbers)
    rates: array = field(default_factory=_numbers)
    skipped: int = 0
    skipped_in_a_row: int = 0
    seconds: float = 0.0
    before: Answers | None = None
    evaluated: int = 0  # the step of the latest evaluation
    best: Answers | None = None
    stale: int = 0

    @property
    def step(self) -> int:
        return len(self.losses)

    def add(self, step: Step) -> None:
        """Take note of a step that was done."""
        self.recent.append(step)
        self.losses.append(math.nan if step.skipped else step.loss)
        self.rates.append(step.learning_rate)
        self.skipped += step.skipped
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if step.skipped else 0

    def as_tree(self) -> dict[str, Any]:
        """What `of_tree` reads."""
        return {
            **vars(self),
            "recent": [astuple(step) for step in self.recent],
            "losses": _tensor(self.losses),
            "rates": _tensor(self.rates),
            "before": vars(self.before) if self.before else None,
            "best": vars(self.best) if self.best else None,
        }

    @classmethod
    def of_tree(cls, tree: dict[str, Any]) -> "State":
        kinds = [one.type for one in fields(Step)]
        steps = [Step(*(kind(value) for kind, value in zip(kinds, row, strict=True))) for row in tree["recent"]]
        lists = {name: array("d", tree[name].tolist()) for name in ("losses", "rates")}
        answers = {name: Answers(**tree[name]) if tree[name] else None for name in ("before", "best")}
        return cls(**{**tree, "recent": _recent(steps), **lists, **answers})


def _tensor(numbers: array) -> torch.Tensor:
    return torch.frombuffer(numbers, dtype=torch.float64).clone() if numbers else torch.zeros(0, dtype=torch.float64)
