"""Optimizers: what is decayed, LoRA+'s rates, each step against its formula, and what a device refuses."""

import pytest
import torch
from torch import nn

import peft_methods as pm
from vlm_train.engine.optimizers import check_optimizer, make_optimizer
from vlm_train.errors import ConfigError
from vlm_train.options.config import TrainConfig


def one_step(parameter: nn.Parameter, gradient: torch.Tensor, **options) -> torch.Tensor:
    config = TrainConfig(**options)
    optimizer = make_optimizer([{"params": [parameter], "lr": 0.1}], config)
    parameter.grad = gradient
    optimizer.step()
    return parameter.detach()


def test_only_matrices_decay():
    layer, norm = nn.Linear(3, 2), nn.LayerNorm(3)
    parameters = [*layer.parameters(), *norm.parameters()]
    optimizer = make_optimizer([{"params": parameters, "lr": 0.1}], TrainConfig(weight_decay=0.5))
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert [decays[id(p)] for p in parameters] == [0.5, 0.0, 0.0, 0.0]


def test_adamw_decays_beside_the_gradient():
    start, gradient = torch.tensor([[2.0, -1.0]], dtype=torch.float64), torch.tensor([[0.3, -4.0]], dtype=torch.float64)
    end = one_step(nn.Parameter(start.clone()), gradient, weight_decay=0.5)
    # in the first step of Adam, the two means are the gradient and its square
    torch.testing.assert_close(end, start - 0.1 * 0.5 * start - 0.1 * gradient / (gradient.abs() + 1e-8))


def test_sgd_has_momentum():
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = make_optimizer([{"params": [parameter], "lr": 0.1}], TrainConfig(optimizer="sgd"))
    for _ in range(2):
        parameter.grad = torch.ones(1)
        optimizer.step()
    assert parameter.item() == pytest.approx(-0.1 * (1 + 1.9))


def test_lora_plus_has_two_rates():
    model = nn.Sequential(nn.Linear(4, 4))
    attachment = pm.attach(model, pm.LoRA(rank=2, targets=["0"], learning_rate_ratio=16))
    optimizer = make_optimizer(attachment.parameter_groups(1e-3), TrainConfig(lora_plus_ratio=16, weight_decay=0.1))
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    found = {name: rates[id(p)] for name, p in attachment.named_parameters()}
    assert found == pytest.approx({"0.lora_A": 1e-3, "0.lora_B": 16e-3})


def test_eight_bits_are_refused_where_they_do_not_run():
    config = TrainConfig(optimizer="adamw8bit")
    with pytest.raises(ConfigError, match="^--optimizer adamw8bit: runs on CUDA, the model is on cpu; use"):
        check_optimizer(config, torch.device("cpu"))
    check_optimizer(config, torch.device("cuda"))
    check_optimizer(TrainConfig(), torch.device("cpu"))
