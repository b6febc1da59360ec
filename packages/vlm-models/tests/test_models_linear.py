"""Products by oneDNN are those of float64, with gradients, whatever the shapes and strides are."""

import copy

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

import vlm_models
from vlm_models import linear


@pytest.fixture
def counted(monkeypatch):
    """How many products went to oneDNN, which takes all that it can."""
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this torch has no oneDNN")
    products, filled_up = [], linear._filled_up
    monkeypatch.setattr(linear, "_ONEDNN_IS_FASTER", True)
    monkeypatch.setattr(linear, "SMALLEST", 0)
    monkeypatch.setattr(linear, "_filled_up", lambda x: products.append(x.shape) or filled_up(x))
    return products


INPUTS = {
    "rows": lambda: torch.randn(37, 24),
    "a row": lambda: torch.randn(24),
    "none": lambda: torch.randn(0, 24),
    "rounded already": lambda: torch.randn(2, 32, 24),
    "cut": lambda: torch.randn(3, 9, 24)[:, :-1],
    "turned": lambda: torch.randn(5, 3, 24).transpose(0, 1),
    "columns": lambda: torch.randn(19, 48)[:, ::2],
    "expanded": lambda: torch.randn(1, 24).expand(7, 24),
}
WEIGHTS = {
    "as it is": lambda: torch.randn(12, 24),
    "transposed": lambda: torch.randn(24, 12).t(),
    "every other row": lambda: torch.randn(24, 24)[::2],
}


@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("shape", INPUTS)
def test_products_are_those_of_float64(shape, weight, counted):
    torch.manual_seed(0)
    x, W, b = INPUTS[shape](), WEIGHTS[weight](), torch.randn(12)
    for bias in (b, None):
        y = linear.multiply(x, W, bias)
        exact = nn.functional.linear(x.double(), W.double(), bias if bias is None else bias.double())
        torch.testing.assert_close(y.double(), exact, rtol=1e-5, atol=1e-5)
        assert not y._is_view() and y.is_contiguous()
    assert len(counted) == (0 if weight == "every other row" else 2)


@pytest.mark.parametrize(
    "layer", [lambda: nn.Linear(24, 12), lambda: nn.Linear(24, 12, bias=False), lambda: Conv1D(12, 24)]
)
@pytest.mark.parametrize("frozen", [True, False])
def test_a_layer_has_the_gradients_of_float64(layer, frozen, counted):
    torch.manual_seed(0)
    plain = layer().double().requires_grad_(not frozen)
    fast = nn.Sequential(copy.deepcopy(plain).float())
    linear.speed_up(fast)
    assert type(fast[0]) is not type(plain) and isinstance(fast[0], type(plain))
    assert fast[0].state_dict().keys() == plain.state_dict().keys()
    x = torch.randn(3, 13, 24)
    inputs = [x.double().requires_grad_(), x.clone().requires_grad_()]
    outputs = [plain(inputs[0]), fast(inputs[1])]
    for output in outputs:
        output.add_(1).square().sum().backward()  # models go on in place
    torch.testing.assert_close(outputs[1].double(), outputs[0], rtol=1e-5, atol=1e-5)
    exact = [inputs[0].grad, *(parameter.grad for parameter in plain.parameters() if not frozen)]
    found = [inputs[1].grad, *(parameter.grad for parameter in fast.parameters() if not frozen)]
    for one, other in zip(found, exact, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-4)
    assert counted and all(parameter.grad is None for parameter in fast.parameters()) == frozen


def test_what_oneDNN_cannot_or_need_not_multiply_goes_to_torch(counted, monkeypatch):
    layer = linear.Linear(24, 12)
    x = torch.randn(5, 24)
    layer.double()(x.double())
    layer.bfloat16()(x.bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        assert layer.float()(x).dtype == torch.bfloat16
    layer.to("meta")(x.to("meta"))
    monkeypatch.setattr(linear, "SMALLEST", x.numel() * 12 + 1)
    linear.Linear(24, 12)(x)
    monkeypatch.setattr(linear, "_ONEDNN_IS_FASTER", False)
    monkeypatch.setattr(linear, "SMALLEST", 0)
    linear.Linear(24, 12)(x)
    assert not counted


def test_few_numbers_of_rows_are_made_of_many():
    rounded = {rows: len(linear._filled_up(torch.zeros(rows, 1))) for rows in range(1, 4097)}
    assert all(rows <= more < rows + max(16, rows / 8) for rows, more in rounded.items())
    assert len(set(rounded.values())) <= 8 * 6


def test_every_linear_layer_of_a_model_is_fast():
    for name in vlm_models.TINY:
        vlm = vlm_models.load(name, device="cpu")
        assert not [one for one, module in vlm.model.named_modules() if type(module) in (nn.Linear, Conv1D)]
