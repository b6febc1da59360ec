"""What happens between the steps of a run: logging, evaluations, the best state, checkpoints, stopping."""

import math
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any

import torch
from datasets import Dataset
from rich.console import Console

from vlm_data import Collator
from vlm_models import VLM
from vlm_runs.progress import Tracker, track
from vlm_train.adapting.attaching import Attached
from vlm_train.engine.checkpoints import Checkpoints
from vlm_train.engine.evaluate import Evaluation, evaluate, evaluation_of
from vlm_train.engine.loop import train
from vlm_train.engine.state import Answers, State
from vlm_train.engine.stopping import Interrupted, Signals
from vlm_train.errors import TrainError
from vlm_train.options.config import TrainConfig
from vlm_train.processes import Processes
from vlm_train.rows.batches import Batches
from vlm_train.rows.streaming import StreamBatches
from vlm_train.rundir import RunDir

CHECKPOINT_SECONDS = 60  # between two checkpoints, where --checkpoint-every does not say
CHECKPOINT_SHARE = 0.02  # of the time that writing them may take then
METRICS = "metrics.jsonl"


class Training:
    """A run's model, optimizer and state, and what `go` does with them.

    `metric` chooses the best state. `after_step` hears of every step, in the main process, which alone writes.
    """

    def __init__(
        self,
        config: TrainConfig,
        vlm: VLM,
        attachment: Attached,
        optimizer: torch.optim.Optimizer,
        collate: Collator,
        val: Dataset,
        metric: str,
        out: RunDir,
        processes: Processes,
        signals: Signals,
        console: Console,
    ):
        self.config, self.vlm, self.attachment, self.optimizer = config, vlm, attachment, optimizer
        self.collate, self.val, self.metric = collate, val, metric
        self.out, self.processes, self.signals, self.console = out, processes, signals, console
        self.checkpoints = Checkpoints(out.checkpoints, config.keep_checkpoints)
        self.state = State()
        self.batches: Batches | StreamBatches | None = None  # before `go`
        self.data_state: dict[str, Any] | None = None  # of a stream, where a run goes on
        self.listeners: list[Callable[[dict], None]] = []  # hear every line of metrics.jsonl
        self._written, self._writing_took, self._saved = time.monotonic(), 0.0, None
        self._best: Evaluation | None = None  # of `state.best`, once it is known

    # ---- the whole of it

    def before(self) -> Evaluation:
        """How the base model does; known to a run that goes on."""
        if (known := self.state.before) is not None:
            return evaluation_of(known.predictions, known.loss, self.val)
        with self.attachment.disabled():  # a random prefix is not the base model
            found = self._measured("evaluating before")
        with self.signals.held():
            self.state.before = Answers.of(0, found)
            self._note(0, found)
        return found

    def go(self, batches: Batches | StreamBatches, steps: int, after_step: Callable[[State, Tracker], None]) -> None:
        """Train from where the state is to step `steps`, or until patience or time are at their end.

        Raises Interrupted: a signal asked for it; the state is whole.
        """
        self.batches = batches
        state, started, minutes = self.state, time.monotonic() - self.state.seconds, self.config.max_minutes or math.inf
        running = train(
            self.vlm,
            self.attachment,
            self.optimizer,
            batches,
            steps,
            self.config,
            self.processes,
            state.step,
            state.skipped_in_a_row,
            lambda: min(1.0, (time.monotonic() - started) / (60 * minutes)),
        )
        with track(self.console, "training", steps) as progress, closing(batches):
            while self._goes_on(steps):
                with self.signals.held():
                    state.add(next(running))
                    state.seconds = time.monotonic() - started
                    if self.processes.main:
                        after_step(state, progress)
        self.vlm.eval()

    def finish(self) -> Evaluation:
        """Put the best state into the model and `adapter/`, and return its evaluation."""
        state = self.state
        if state.evaluated != state.step or state.best is None:
            self._evaluate("evaluating after")
        if state.best.step != state.step:
            tree = self.processes.from_main(lambda: self.checkpoints.load(state.best.step))
            self.attachment.load_state_dict(tree["adapter"])
        self.save_adapter()
        return self._best_evaluation()

    # ---- between two steps

    def _goes_on(self, steps: int) -> bool:
        """What is due after the latest step is done; then whether another step is."""
        state, every = self.state, self.config.evaluate_every
        if every and 0 < state.step < steps and state.step % every == 0 and state.evaluated != state.step:
            self._evaluate(None)
        limit, patience = self.config.max_minutes, self.config.patience
        out_of_time = limit is not None and state.seconds >= 60 * limit
        # What clocks and signals say differs between processes, what they do must not.
        asked, late, due = self.processes.sum(
            self.signals.number > 0, self.processes.main and out_of_time, self.processes.main and self._due()
        )
        if asked:
            raise Interrupted(self.signals.number or 15)
        if due:
            self.save_checkpoint()
        return not (state.step >= steps or late or (patience and state.stale >= patience))

    def _evaluate(self, title: str | None) -> None:
        """Evaluate the present state, and keep it if it is the best until now."""
        found, state = self._measured(title), self.state
        with self.signals.held():
            state.evaluated = state.step
            better = found.better_than(None if state.best is None else self._best_evaluation(), self.metric)
            state.stale = 0 if better else state.stale + 1
            if better:
                state.best, self._best = Answers.of(state.step, found), found
            self._note(state.step, found)
        if title is None:
            text = ", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in found.values().items())
            self.console.print(f"step {state.step}: {text}{', the best' if better else ''}", highlight=False)
            if better:
                self.save_checkpoint()
                self.save_adapter()

    def _best_evaluation(self) -> Evaluation:
        """That of `state.best`, whose scores a resumed run computes anew."""
        if self._best is None:
            self._best = evaluation_of(self.state.best.predictions, self.state.best.loss, self.val)
        return self._best

    def _measured(self, title: str | None) -> Evaluation:
        quiet = Console(quiet=True)  # there is a bar already
        console = self.console if title else quiet
        workers = self.config.worker_count
        return evaluate(self.vlm, self.collate, self.val, console, title or "", self.processes, workers)

    def _note(self, step: int, found: Evaluation) -> None:
        if self.processes.main:
            self.note({"step": step, **found.values()})

    def note(self, line: dict) -> None:
        """Add a line to metrics.jsonl."""
        self.out.append(METRICS, line)
        for listener in self.listeners:
            listener(line)

    # ---- checkpoints

    def _due(self) -> bool:
        every, step = self.config.checkpoint_every, self.state.step
        if every is not None:
            return step > 0 and step % every == 0 and self._saved != step
        pause = max(CHECKPOINT_SECONDS, self._writing_took / CHECKPOINT_SHARE)
        return time.monotonic() - self._written > pause

    def save_checkpoint(self) -> None:
        """Write down all that is needed to go on from here. Raises TrainError where that cannot be."""
        if not self.processes.main or self._saved == self.state.step:
            return
        started = time.monotonic()
        tree = {
            "state": self.state.as_tree(),
            "metrics_bytes": self.out.size(METRICS),
            "adapter": self.attachment.state_dict(),
            "optimizer": _named(self.optimizer.state_dict()),
            "data": self.data_state if self.batches is None else self.batches.state(self.state.step),
        }
        best = self.state.best
        self.checkpoints.save(self.state.step, tree, spare=best.step if best else None)
        self._saved, self._written = self.state.step, time.monotonic()
        self._writing_took = self._written - started

    def resume(self) -> None:
        """Go to the newest whole checkpoint, or to the beginning if there is none."""
        found = self.processes.from_main(lambda: self.checkpoints.newest(self._say))
        metrics_bytes = 0
        if found is None:
            self._say("there is no whole checkpoint: the run begins again")
        else:
            step, tree = found
            self._say(f"going on after step {step}")
            self.state, metrics_bytes = State.of_tree(tree["state"]), tree["metrics_bytes"]
            self.attachment.load_state_dict(tree["adapter"])
            self.optimizer.load_state_dict(_numbered(tree["optimizer"]))
            self.data_state = tree["data"]
            self._saved = step
        if self.processes.main:
            self.out.truncate(METRICS, metrics_bytes)

    def save_adapter(self) -> None:
        """Write the trained parameters as they are to `adapter/`."""
        if self.processes.main:
            self.attachment.save(self.out.adapter, base_model=self.config.model)

    def stop(self) -> bool:
        """Save what there is when the run cannot go on; returns whether it can be resumed from here."""
        if self.state.step == 0 or self.signals.cut:
            return bool(self.checkpoints.steps())
        try:
            self.save_checkpoint()
            if self.state.best is None:
                self.save_adapter()
        except (TrainError, OSError):  # what stopped the run may well be the disk
            return bool(self.checkpoints.steps())
        return True

    def _say(self, text: str) -> None:
        self.console.print(text, highlight=False, soft_wrap=True, markup=False)


def _named(state: dict[str, Any]) -> dict[str, Any]:
    """An optimizer's state with strings for the numbers of its parameters, as JSON has them."""
    return {**state, "state": {str(number): of_one for number, of_one in state["state"].items()}}


def _numbered(state: dict[str, Any]) -> dict[str, Any]:
    return {**state, "state": {int(number): of_one for number, of_one in state["state"].items()}}
