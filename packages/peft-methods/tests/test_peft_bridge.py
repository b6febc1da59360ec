"""Layers of other libraries: bitsandbytes' quantized ones, and linear layers with a forward of their own."""

import ast
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import peft_methods as pm


def check_training(model, attachment, x, relative):
    """Loss goes down, and output and gradients are those of base(x) + s · x Aᵀ Bᵀ by autograd."""
    module = attachment.modules["0"]
    nn.init.normal_(module.lora_B, std=0.1)
    y = model(x)
    expected = module.base(x) + module.scale * (x.float() @ module.lora_A.t() @ module.lora_B.t())
    assert (y.float() - expected.float()).norm() <= relative * expected.float().norm()
    inputs = (module.lora_A, module.lora_B)
    for got, want in zip(
        torch.autograd.grad(y.float().square().sum(), inputs),
        torch.autograd.grad(expected.float().square().sum(), inputs),
        strict=True,
    ):
        assert (got - want).norm() <= relative * want.norm()
    optimizer = torch.optim.Adam(attachment.parameters(), lr=0.02)
    losses = []
    for _ in range(20):
        loss = (model(x).float() - 1).square().mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["Linear4bit", "Linear8bitLt"])
def test_bitsandbytes(kind, dtype, tmp_path):
    bnb = pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    options = {"compute_dtype": dtype, "quant_type": "nf4"} if kind == "Linear4bit" else {"has_fp16_weights": False}
    model = nn.Sequential(getattr(bnb.nn, kind)(64, 32, **options)).to("cpu")
    attachment = pm.attach(model, pm.LoRA(rank=4))
    assert attachment.total == 64 * 32 + 32 + 4 * (64 + 32)
    assert {p.dtype for p in attachment.parameters()} == {torch.float32}
    x = torch.randn(16, 64, dtype=dtype)
    check_training(model, attachment, x, 3e-2 if dtype == torch.bfloat16 else 1e-3)
    with pytest.raises(pm.AdapterError, match=f"quantized {kind} cannot be merged"):
        attachment.merge()
    attachment.save(tmp_path)
    with torch.no_grad():
        expected = model(x)
        attachment.detach()
        base = model(x)
        attachment = pm.load(model, tmp_path)
        assert torch.equal(model(x), expected)
        with attachment.disabled():
            assert torch.equal(model(x), base)


@pytest.mark.parametrize("evaluated", ["before", "attached", "between"])
@pytest.mark.parametrize("dora", [False, True])
def test_gradients_pass_4_bit_layers_that_were_evaluated(evaluated, dora):
    bnb = pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    options = {"compute_dtype": torch.float32, "quant_type": "nf4"}
    model = nn.Sequential(bnb.nn.Linear4bit(64, 64, **options), bnb.nn.Linear4bit(64, 32, **options)).to("cpu")
    x = torch.randn(5, 64)
    if evaluated == "before":
        model.eval()(x)
    attachment = pm.attach(model, pm.LoRA(4, dora=dora))
    if evaluated == "between":
        with torch.no_grad():
            model.eval()(x)
    model.train(evaluated != "attached")
    for parameter in attachment.parameters():
        parameter.data.add_(0.1)
    model(x).square().sum().backward()
    assert not attachment.without_gradient()


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def test_linear_with_a_forward_of_its_own():
    torch.manual_seed(0)
    model = nn.Sequential(Doubled(8, 4))
    attachment = pm.attach(model, pm.LoRA(rank=2, dropout=0.0))
    check_training(model, attachment, torch.randn(16, 8), 1e-5)


def test_forward_replaced_on_the_instance():
    """As accelerate does, to fetch offloaded weights."""
    model = nn.Sequential(nn.Linear(8, 4))
    plain = model[0].forward
    model[0].forward = lambda x: plain(x) + 100
    pm.attach(model, pm.LoRA(rank=2))
    assert model(torch.zeros(1, 8)).min() > 50


def test_only_torch_and_safetensors_are_imported():
    for file in Path(pm.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            top = {name.partition(".")[0] for name in names}
            assert top <= sys.stdlib_module_names | {"torch", "safetensors"}, file


@pytest.mark.parametrize("dora", [False, True])
def test_a_layer_makes_its_product_itself(dora):
    products = []

    class Counting(nn.Linear):
        @staticmethod
        def multiply(x, W, b=None):
            products.append(W.shape)
            return nn.functional.linear(x, W, b)

    torch.manual_seed(0)
    models = [nn.Sequential(cls(64, 32), nn.Tanh()) for cls in (Counting, nn.Linear)]
    models[1].load_state_dict(models[0].state_dict())
    x, found = torch.randn(16, 64), []
    for model in models:
        attachment = pm.attach(model, pm.LoRA(rank=4, dora=dora))
        nn.init.normal_(attachment.modules["0"].lora_B, generator=torch.Generator().manual_seed(0))
        attachment.modules["0"].lora_A.data.copy_(torch.ones(4, 64))
        at = x.clone().requires_grad_()
        model(at).square().sum().backward()
        found.append([at.grad, *(parameter.grad for parameter in attachment.parameters())])
    assert products == [(32, 64), (64, 32)]  # forward and backward
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
