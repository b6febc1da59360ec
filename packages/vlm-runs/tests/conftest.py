"""A small model, and the folders of runs."""

import pytest
import torch
from torch import nn


class Words(nn.Module):
    """Two linear layers between an embedding and a head; `config` is what PEFT asks a model for."""

    def __init__(self):
        super().__init__()
        self.embed, self.first, self.second = nn.Embedding(11, 8), nn.Linear(8, 8), nn.Linear(8, 11)
        self.config = {"model_type": "words"}

    def forward(self, ids):
        return self.second(torch.tanh(self.first(self.embed(ids))))


@pytest.fixture
def make_model():
    def make() -> nn.Module:
        torch.manual_seed(0)
        return Words().eval()

    return make


@pytest.fixture
def ids():
    return torch.arange(10).reshape(2, 5)
