"""Learning rates by step, against their formulas and against those of transformers."""

import math

import pytest
import torch
import transformers

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
