"""Learning rates by step, against their formulas and against those of transformers."""

import itertools
import math

import pytest
import torch
import transformers

from vlm_train.engine.loop import train
from vlm_train.options.config import TrainConfig
from vlm_train.processes import Processes
from vlm_train.schedules import SCHEDULES, share_of_peak


def test_the_rate_rises_linearly_and_falls_along_a_cosine():
    shares = [share_of_peak(step, 100, 0.1) for step in range(100)]
    assert shares[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert shares[10:] == pytest.approx([(1 + math.cos(math.pi * step / 90)) / 2 for step in range(90)])
    assert share_of_peak(0, 10, 0.0) == 1.0 and share_of_peak(0, 1, 0.0) == 1.0 and share_of_peak(0, 1, 1.0) == 1.0


@pytest.mark.parametrize("name", SCHEDULES)
def test_behind_the_warm_up_they_are_those_of_transformers(name):
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    theirs = "constant_with_warmup" if name == "constant" else name
    scheduler = transformers.get_scheduler(theirs, optimizer, num_warmup_steps=5, num_training_steps=50)
    rates = []
    for _ in range(50):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert [share_of_peak(step, 50, 0.1, name) for step in range(5, 50)] == pytest.approx(rates[5:])


class Line(torch.nn.Module):
    """As much of a model, its attachment and its batches as the loop asks for: one parameter, one row a step."""

    def __init__(self):
        super().__init__()
        self.slope = torch.nn.Parameter(torch.ones(1))
        self.loss_terms = lambda count: None

    def parameters(self, recurse=True):
        return [self.slope]

    def forward(self, batch):
        return self.slope.sum(), 1

    def rows(self, step):
        return [[{"source": "a row"}]]

    def ready(self, rows, step):
        return {"labels": torch.zeros(1, 1, dtype=torch.long)}


def test_where_time_is_short_the_rate_goes_by_the_clock():
    line, clock = Line(), [0.0, 0.05, 0.03, 0.1, 0.25, 0.5, 0.75, 1.0]  # of a time in which 8 of 100 steps are done
    optimizer = torch.optim.SGD([{"params": [line.slope], "lr": 2.0}])
    config = TrainConfig(learning_rate=2.0, warmup=0.1, schedule="linear", max_gradient_norm=0)
    hands = iter(clock)
    steps = train(line, line, optimizer, line, 100, config, Processes(), time_used=lambda: next(hands))
    rates = [step.learning_rate for step in itertools.islice(steps, len(clock))]
    # By the larger of the steps done (0 to 7) and the clock's steps, of which the first 10 are warm-up.
    assert rates == pytest.approx([2 * share for share in (0.1, 0.6, 0.4, 1, 75 / 90, 50 / 90, 25 / 90, 0)])


def test_where_steps_are_ahead_of_the_clock_it_changes_nothing():
    found = []
    for clock in (lambda: 0.0, lambda: 0.09):
        line = Line()
        optimizer = torch.optim.SGD([{"params": [line.slope], "lr": 1.0}])
        config = TrainConfig(warmup=0.0, max_gradient_norm=0)
        steps = train(line, line, optimizer, line, 10, config, Processes(), first=1, time_used=clock)
        found.append([step.learning_rate for step in steps])
    assert found[0] == found[1]
