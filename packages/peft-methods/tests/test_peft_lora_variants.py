"""DoRA, the initializations and LoRA+, against their formulas written out in full size."""

import copy

import pytest
import torch
from torch import nn

import peft_methods as pm


def setup(dtype=torch.float64, transposed=False, **options):
    torch.manual_seed(0)
    if transposed:
        base = pytest.importorskip("transformers.pytorch_utils").Conv1D(6, 9)
        nn.init.normal_(base.bias)
    else:
        base = nn.Linear(9, 6)
    model = nn.Sequential(base).to(dtype)
    part = pm.attach(model, pm.LoRA(**{"rank": 3, "alpha": 6, "targets": ["0"], **options})).modules["0"]
    return model, part, torch.randn(4, 5, 9, dtype=dtype)


def move(part):
    with torch.no_grad():
        for parameter in part.adapter_parameters().values():
            parameter += 0.3 * torch.randn_like(parameter)


def weight(part):
    W = part.base.weight
    return W.t() if part.layout.transposed else W


@pytest.mark.parametrize("transposed", [False, True])
def test_dora_is_its_formula_and_so_are_its_gradients(transposed):
    model, part, x = setup(transposed=transposed, dora=True)
    move(part)
    x.requires_grad_()
    A, B, m = (parameter.detach().clone().requires_grad_() for parameter in part.adapter_parameters().values())
    V = weight(part) + part.scale * B @ A
    expected = x @ (m / V.norm(dim=1).detach())[:, None].mul(V).t() + part.base.bias
    grads = torch.autograd.grad(expected.square().sum(), (x, A, B, m))
    y = model(x)
    torch.testing.assert_close(y, expected, atol=1e-12, rtol=0)
    actual = torch.autograd.grad(y.square().sum(), (x, part.lora_A, part.lora_B, part.magnitude))
    torch.testing.assert_close(actual, grads, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 0.02)])
def test_dora_starts_at_the_base_model(dtype, tolerance):
    model, part, x = setup(dtype, dora=True)
    with torch.no_grad():
        torch.testing.assert_close(model(x), part.base(x), atol=tolerance, rtol=tolerance)
    assert part.magnitude.dtype == torch.float32


def test_doras_norm_follows_every_change_also_where_it_is_kept():
    model, part, x = setup(dora=True)
    model.eval()
    for change in (part.lora_A, part.lora_B, part.magnitude, part.base.weight):
        with torch.no_grad():
            before = model(x)
            change += 0.1 * torch.randn_like(change)
            kept = model(x)
            assert torch.equal(model(x), kept) and (change is part.lora_A or not torch.equal(kept, before))
            model.train()
            assert torch.equal(model(x), kept)  # computed anew
            model.eval()
            part.lora_B.add_(0.1)


def test_dora_dropout_is_on_the_low_rank_path_only():
    model, part, x = setup(dora=True, dropout=0.5)
    nn.init.zeros_(part.lora_A)
    nn.init.normal_(part.magnitude)
    model.train()
    with torch.no_grad():
        outputs = [model(x), model(x), model.eval()(x)]
    assert torch.equal(outputs[0], outputs[1]) and torch.allclose(outputs[0], outputs[2])


def test_dora_keeps_little_for_backward():
    model, part, _ = setup(torch.bfloat16, dora=True)
    x = torch.randn(512, 9, dtype=torch.bfloat16, requires_grad=True)
    own = {parameter.data_ptr() for parameter in model.parameters()}
    kept = {}
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: (kept.setdefault(t.data_ptr(), 0 if t.data_ptr() in own else t.nbytes), t)[1], lambda t: t
    ):
        y = model(x)
    assert sum(kept.values()) <= x.nbytes + y.nbytes + 512 * 3 * 2 + 4 * 1024  # x, the product before m, h


@pytest.mark.parametrize("how", ["pissa", "olora"])
@pytest.mark.parametrize("transposed", [False, True])
def test_factors_of_the_weight_start_at_the_base_and_train(how, transposed, tmp_path):
    model, part, x = setup(transposed=transposed, initialization=how)
    W = weight(part)
    if how == "pissa":
        U, S, Vt = torch.linalg.svd(W.float(), full_matrices=False)
        expected = U[:, :3] * S[:3] @ Vt[:3]
        torch.testing.assert_close((part.scale * part.lora_B @ part.lora_A).float(), expected, atol=1e-5, rtol=0)
    else:
        Q, R = torch.linalg.qr(W)
        assert torch.equal(part.lora_B, Q[:, :3]) and torch.equal(part.lora_A, R[:3])
    bare = copy.deepcopy(part.base)
    torch.testing.assert_close(model(x), bare(x), atol=1e-12, rtol=0)
    # from there on, gradients are those of LoRA on the residual weight
    residual = (W - part.scale * part.lora_B @ part.lora_A).detach()
    A, B = part.lora_A.detach().clone().requires_grad_(), part.lora_B.detach().clone().requires_grad_()
    expected = x @ (residual + part.scale * B @ A).t() + part.base.bias
    grads = torch.autograd.grad(expected.square().sum(), (A, B))
    model(x).square().sum().backward()
    torch.testing.assert_close((part.lora_A.grad, part.lora_B.grad), grads, atol=1e-9, rtol=1e-9)
    # saved, it is a plain LoRA of twice the rank
    move(part)
    pm.attachments(model)[0].save(tmp_path)
    other = nn.Sequential(copy.deepcopy(bare))
    loaded = pm.load(other, tmp_path)
    torch.testing.assert_close(other(x), model(x), atol=1e-12, rtol=0)
    assert loaded.modules["0"].lora_A.shape == (6, 9) and loaded.method.initialization == "zeros"
    # and the training state goes on where it was
    again, second, _ = setup(transposed=transposed, initialization=how)
    second.offset_A.zero_()
    pm.attachments(again)[0].load_state_dict(pm.attachments(model)[0].state_dict())
    assert torch.equal(again(x), model(x))


def test_gaussian():
    torch.manual_seed(0)
    part = pm.attach(nn.Sequential(nn.Linear(2000, 5)), pm.LoRA(8, initialization="gaussian")).modules["0"]
    assert abs(part.lora_A.std().item() * 8 - 1) < 0.03 and part.lora_B.eq(0).all()


def test_a_rank_that_the_weight_does_not_have():
    with pytest.raises(ValueError, match="at most 5"):
        pm.attach(nn.Sequential(nn.Linear(9, 5)), pm.LoRA(6, initialization="pissa"))


def test_lora_plus_gives_b_its_own_learning_rate():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    attachment = pm.attach(model, pm.LoRA(2, bias="all", learning_rate_ratio=16))
    slow, fast = sorted(attachment.parameter_groups(1e-3), key=lambda group: group["lr"])
    assert (slow["lr"], fast["lr"]) == (1e-3, 16e-3)
    assert {id(p) for p in fast["params"]} == {id(part.lora_B) for path, part in attachment.modules.items() if path}
    assert len(slow["params"]) == 4  # two A, two biases


@pytest.mark.parametrize("options", [{"dora": True}, {"initialization": "pissa"}, {"initialization": "olora"}])
def test_on_a_four_bit_base(options):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    layer = bitsandbytes.nn.Linear4bit(64, 32, compute_dtype=torch.float32, quant_type="nf4")
    model = nn.Sequential(layer).to("cpu")
    x = torch.randn(3, 64)
    with torch.no_grad():
        expected = model(x)
        identity = model(torch.eye(64)) - layer.bias
    attachment = pm.attach(model, pm.LoRA(4, targets=["0"], **options))
    torch.testing.assert_close(model(x), expected, atol=1e-4, rtol=1e-4)
    if "dora" in options:
        torch.testing.assert_close(attachment.modules["0"].magnitude, identity.t().norm(dim=1), atol=1e-4, rtol=1e-4)
    model(x).square().sum().backward()
    assert not attachment.without_gradient()
