"""How far a run has come: all that its checkpoints hold beside the trained parameters and the optimizer."""

from dataclasses import astuple, dataclass, field, fields
from typing import Any

import torch

from vlm_train.engine.evaluate import Evaluation
from vlm_train.engine.loop import Step


@dataclass(frozen=True)
class Answers:
    """What an evaluation found, without what follows from it: of the state after `step`, 0 being the base model."""

    step: int
    predictions: list[str]
    loss: float

    @classmethod
    def of(cls, step: int, evaluation: Evaluation) -> "Answers":
        return cls(step, evaluation.predictions, evaluation.loss)


@dataclass
class State:
    """`log` has the steps done. `stale`: evaluations since the best one. `seconds`: spent on training until now."""

    log: list[Step] = field(default_factory=list)
    seconds: float = 0.0
    before: Answers | None = None
    evaluated: int = 0  # the step of the latest evaluation
    best: Answers | None = None
    stale: int = 0

    @property
    def step(self) -> int:
        return len(self.log)

    @property
    def skipped(self) -> int:
        """Steps whose loss was not finite."""
        return sum(step.skipped for step in self.log)

    @property
    def skipped_in_a_row(self) -> int:
        """Those among the last steps, up to the last good one."""
        return next((count for count, step in enumerate(reversed(self.log)) if not step.skipped), self.step)

    def as_tree(self) -> dict[str, Any]:
        """What `of_tree` reads."""
        return {
            "log": torch.tensor([astuple(step) for step in self.log], dtype=torch.float64),
            "seconds": self.seconds,
            "before": vars(self.before) if self.before else None,
            "evaluated": self.evaluated,
            "best": vars(self.best) if self.best else None,
            "stale": self.stale,
        }

    @classmethod
    def of_tree(cls, tree: dict[str, Any]) -> "State":
        kinds = [one.type for one in fields(Step)]
        log = [Step(*(kind(value) for kind, value in zip(kinds, row, strict=True))) for row in tree["log"].tolist()]
        answers = {name: Answers(**tree[name]) if tree[name] else None for name in ("before", "best")}
        return cls(log, tree["seconds"], evaluated=tree["evaluated"], stale=tree["stale"], **answers)
