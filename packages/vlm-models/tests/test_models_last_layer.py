"""The last layer's parts at some places alone: there as everywhere, and nothing else is computed."""

import pytest
import torch
from torch import nn

import vlm_models
from vlm_models.last_layer import only_at


class Layer(nn.Module):
    """A residual MLP of two modules, over the flattened rows or not, and how many positions it was asked about."""

    def __init__(self, flat: bool):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.flat = nn.Linear(4, 8).double(), nn.Linear(8, 4).double(), flat
        self.first.register_forward_hook(lambda module, args, output: self.seen.append(output.shape[:-1].numel()))
        self.seen: list[int] = []

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        given = hidden.flatten(0, 1) if self.flat else hidden
        return hidden + self.last(self.first(given).relu()).view_as(hidden)


@pytest.mark.parametrize("flat", [False, True])
def test_values_and_gradients_at_the_places_are_those_of_the_whole(flat):
    layer, places = Layer(flat), torch.tensor([1, 7, 8])
    hidden = torch.randn(2, 5, 4, dtype=torch.float64, requires_grad=True)
    expected = layer(hidden).flatten(0, 1)[places]
    gradients = torch.autograd.grad(expected.square().sum(), [hidden, *layer.parameters()])
    with only_at(places, [(layer.first, layer.last)]):
        found = layer(hidden).flatten(0, 1)[places]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)
    for one, other in zip(
        torch.autograd.grad(found.square().sum(), [hidden, *layer.parameters()]), gradients, strict=True
    ):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-13)
    assert layer.seen == [10, 3]
    assert torch.equal(layer(hidden).flatten(0, 1)[places], expected) and layer.seen[-1] == 10


@pytest.mark.parametrize("name", ["tiny-blip2", "tiny-qwen2-vl", "tiny-vit-gpt2"])
def test_a_training_step_runs_the_last_layer_where_tokens_are_supervised(name, prompts):
    vlm = vlm_models.load(name, device="cpu", dtype="float64").train()
    batch = prompts(vlm, [0, 1], [[20, 21, 22], [23, 24]], [(2, 2), (2, 2)])
    batch["labels"] = batch["input_ids"].clone()
    batch["labels"][:, :-1] = -100
    seen, spans = [], vlm._last_layer()
    for _, last in spans:
        last.register_forward_hook(lambda module, args, output: seen.append(output.shape[:-1].numel()))
    loss, count = vlm(batch)
    assert count == 2 and seen == [2] * len(spans) and len(spans) >= 3
    expected, _ = vlm.loss(vlm.hidden_states(vlm.encode_images(batch), batch), batch)
    assert seen[-1] == batch["input_ids"].numel()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
