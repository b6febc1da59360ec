"""GRIT's natural gradients: what they are, what they do not depend on, and how they take part in optimizer steps."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import peft_methods as pm
from peft_methods.grit.curvature import count

DOUBLE = torch.float64


def network(dtype=DOUBLE):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(7, 6), nn.Tanh(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4)).to(dtype)


def attached(dtype=DOUBLE, method=pm.GRIT, **options):
    """A network whose attachment has a B that is not zero."""
    model = network(dtype)
    options = {"trust_region": None} | options if method is pm.GRIT else options
    attachment = pm.attach(model, method(**{"rank": 3, "alpha": 4, "targets": ["2", "4"]} | options))
    for part in attachment.modules.values():
        nn.init.normal_(part.lora_B, std=0.5)
    return model, attachment


def data(rows=32, dtype=DOUBLE):
    generator = torch.Generator().manual_seed(3)
    return torch.randn(rows, 7, generator=generator, dtype=dtype), torch.randint(4, (rows,), generator=generator)


def gradients(attachment):
    return {name: parameter.grad.clone() for name, parameter in attachment.named_parameters()}


def one_step(model, attachment, optimizer, x, y):
    optimizer.zero_grad()
    F.cross_entropy(model(x), y).backward()
    plain = gradients(attachment)
    optimizer.step()
    return plain


def products(attachment):
    return [part.product().detach() for part in attachment.modules.values()]


@pytest.mark.parametrize("published", [False, True])
def test_gradients_are_multiplied_by_the_damped_inverses(published):
    model, attachment = attached(published=published, damping=0.01)
    optimizer = torch.optim.SGD(attachment.parameters(), lr=0.1)
    attachment.bind(optimizer)
    before = {name: parameter.detach().clone() for name, parameter in attachment.named_parameters()}
    plain = one_step(model, attachment, optimizer, *data())
    for path, part in attachment.modules.items():
        a, g = (S + 0.01 * S.trace() / 3 * torch.eye(3, dtype=DOUBLE) for S in part.curvature.means())
        a, g = (g, a) if published else (a, g)
        A, B = (
            torch.linalg.solve(g, plain[f"{path}.lora_A"]),
            torch.linalg.solve(a, plain[f"{path}.lora_B"], left=False),
        )
        torch.testing.assert_close(part.lora_A.grad, A, rtol=1e-10, atol=0)
        torch.testing.assert_close(part.lora_B.grad, B, rtol=1e-10, atol=0)
        torch.testing.assert_close(part.lora_A.detach(), before[f"{path}.lora_A"] - 0.1 * A)


@pytest.mark.parametrize("trust_region", [None, 1e-3])
def test_the_product_does_not_depend_on_its_factors_basis(trust_region):
    """A -> R A, B -> B R⁻¹ leaves the product as it is, and then also the product after steps, but not as published."""
    R = torch.randn(3, 3, generator=torch.Generator().manual_seed(1), dtype=DOUBLE)
    difference = {}
    for published in (False, True):
        after = []
        for turned in (False, True):
            model, attachment = attached(damping=0.0, published=published, trust_region=trust_region)
            if turned:
                for part in attachment.modules.values():
                    part.lora_A.data = R @ part.lora_A.data
                    part.lora_B.data = part.lora_B.data @ R.inverse()
            optimizer = torch.optim.SGD(attachment.parameters(), lr=0.01, momentum=0.9)
            attachment.bind(optimizer)
            start = products(attachment)
            for _ in range(1 if published else 5):
                one_step(model, attachment, optimizer, *data())
            after.append(torch.cat([(b - a).flatten() for a, b in zip(start, products(attachment), strict=True)]))
        difference[published] = ((after[0] - after[1]).norm() / after[0].norm()).item()
    assert difference[False] < 1e-9
    assert difference[True] > 0.1


def test_the_step_does_not_depend_on_alpha():
    """s B A is as far moved with s = 4 as with s = 1, where A is the same and B a fourth."""
    after = []
    for scale in (1, 4):
        model, attachment = attached(damping=1e-3, alpha=3 * scale)
        for part in attachment.modules.values():
            part.lora_B.data /= scale
        optimizer = torch.optim.SGD(attachment.parameters(), lr=0.01)
        attachment.bind(optimizer)
        start = products(attachment)
        one_step(model, attachment, optimizer, *data())
        after.append(torch.cat([(b - a).flatten() for a, b in zip(start, products(attachment), strict=True)]))
    torch.testing.assert_close(*after, rtol=1e-9, atol=1e-12)


def matrix(rows, columns, condition, generator):
    U = torch.linalg.qr(torch.randn(rows, 6, generator=generator, dtype=DOUBLE))[0]
    V = torch.linalg.qr(torch.randn(columns, 6, generator=generator, dtype=DOUBLE))[0]
    return U, torch.logspace(0, -torch.log10(torch.tensor(condition)).item(), 6, dtype=DOUBLE), V


def test_low_rank_regression_takes_ten_iterations_where_gradient_descent_takes_thousands():
    """40 x 50 of rank 6 and condition 10, factors out of balance by 10, from nearby."""
    generator = torch.Generator().manual_seed(0)
    U, S, V = matrix(40, 50, 10.0, generator)
    target = U * S @ V.t()
    B0, A0 = 10 * U * S.sqrt(), 0.1 * S.sqrt()[:, None] * V.t()
    B0 = B0 * (1 + 0.1 * torch.randn(B0.shape, generator=generator, dtype=DOUBLE))
    A0 = A0 * (1 + 0.1 * torch.randn(A0.shape, generator=generator, dtype=DOUBLE))
    start = (B0 @ A0 - target).square().sum()

    def grit(published):
        layer = nn.Sequential(nn.Linear(50, 40, bias=False, dtype=DOUBLE))
        nn.init.zeros_(layer[0].weight)
        method = pm.GRIT(
            rank=6, alpha=6, targets=["0"], fisher="sampled", decay=0.0, damping=1e-9, trust_region=None,
            rebalance_every=None, published=published,
        )  # fmt: skip
        attachment = pm.attach(layer, method)
        part = attachment.modules["0"]
        part.lora_A.data, part.lora_B.data = A0.clone(), B0.clone()
        optimizer = torch.optim.SGD(attachment.parameters(), lr=2 / 3)
        attachment.bind(optimizer)
        attachment.loss_terms(50)
        x = 50**0.5 * torch.eye(50, dtype=DOUBLE)  # E[x xᵀ] = I
        for iteration in range(1, 30):
            optimizer.zero_grad()
            (layer(x) - x @ target.t()).square().sum().div(2 * 50).backward()
            with pm.measuring(attachment):  # squared error: exact
                outputs = layer(x)
                for output in range(40):
                    outputs[:, output].sum().div(50).backward(retain_graph=True)
            optimizer.step()
            if (part.lora_B @ part.lora_A - target).square().sum() < 1e-8 * start:
                return iteration
        return 30

    def gradient_descent(lr):
        A, B = A0.clone(), B0.clone()
        for _ in range(4000):
            E = B @ A - target
            A, B = A - lr * B.t() @ E, B - lr * E @ A.t()
        return (B @ A - target).square().sum() / start

    assert grit(published=False) <= 10
    assert grit(published=True) == 30
    left = min(error for lr in (1e-2, 2e-2, 3e-2, 4e-2) if (error := gradient_descent(lr)).isfinite())
    assert 1e-8 < left < 1  # it does descend


def test_the_trust_region_bounds_the_expected_change():
    model, attachment = attached(trust_region=1e-4, damping=0.01)
    A, B = ([p for n, p in attachment.named_parameters() if n.endswith(end)] for end in ("A", "B"))
    optimizer = torch.optim.SGD([{"params": A, "lr": 0.1}, {"params": B, "lr": 0.4}])
    attachment.bind(optimizer)
    plain = one_step(model, attachment, optimizer, *data())
    rate = {name: 0.1 if name.endswith("A") else 0.4 for name in plain}
    within = gradients(attachment)
    free, unbounded = attached(damping=0.01)
    one_step_of = torch.optim.SGD(unbounded.parameters(), lr=0.0)
    unbounded.bind(one_step_of)
    one_step(free, unbounded, one_step_of, *data())
    natural = gradients(unbounded)
    nu = (1e-4 / sum(rate[n] ** 2 * (natural[n] * plain[n]).sum() for n in plain)) ** 0.5
    assert nu < 1
    for name in plain:
        torch.testing.assert_close(within[name], nu * natural[name], rtol=1e-10, atol=0)

    model, attachment = attached(trust_region=1e9, damping=0.01)  # never longer than the natural gradient
    optimizer = torch.optim.SGD(attachment.parameters(), lr=0.1)
    attachment.bind(optimizer)
    one_step(model, attachment, optimizer, *data())
    for name, gradient in gradients(attachment).items():
        torch.testing.assert_close(gradient, natural[name], rtol=1e-12, atol=0)


def test_clipping_comes_last():
    model, attachment = attached(max_norm=0.01)
    optimizer = torch.optim.SGD(attachment.parameters(), lr=0.1)
    attachment.bind(optimizer)
    one_step(model, attachment, optimizer, *data())
    norm = torch.cat([gradient.flatten() for gradient in gradients(attachment).values()]).norm()
    torch.testing.assert_close(norm, torch.tensor(0.01, dtype=DOUBLE), rtol=1e-3, atol=0)


def test_penalties_are_gradients_of_their_formula():
    model, attachment = attached(curvature_penalty=0.3, projection_penalty=0.2, energy=0.8, warmup=10)
    optimizer = torch.optim.SGD(attachment.parameters(), lr=0.0)
    attachment.bind(optimizer)
    plain = one_step(model, attachment, optimizer, *data())
    for path, part in attachment.modules.items():
        a, g = part.curvature.means()
        A, B = (parameter.detach().clone().requires_grad_() for parameter in (part.lora_A, part.lora_B))
        penalty = 0.3 * ((A.t() @ a @ A).trace() + (B @ g @ B.t()).trace())
        for factor, along in ((a, A.t()), (g, B)):
            values, vectors = torch.linalg.eigh(factor)
            count = next(k for k in (1, 2, 3) if values[-k:].sum() >= 0.8 * values.sum())
            P = vectors[:, -count:] @ vectors[:, -count:].t()
            penalty = penalty + 0.2 * (along - along @ P).square().sum()
        penalty.backward()
        torch.testing.assert_close(part.lora_A.grad, plain[f"{path}.lora_A"] + A.grad, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(part.lora_B.grad, plain[f"{path}.lora_B"] + B.grad, rtol=1e-9, atol=1e-12)


def test_steps_of_the_warm_up_are_loras():
    trained = []
    for method, options in ((pm.LoRA, {}), (pm.GRIT, {"warmup": 3, "rebalance_every": 1})):
        model, attachment = attached(method=method, **options)
        optimizer = torch.optim.AdamW(attachment.parameters(), lr=0.01)
        attachment.bind(optimizer)
        states = []
        for _ in range(4):
            one_step(model, attachment, optimizer, *data())
            states.append([parameter.detach().clone() for parameter in attachment.parameters()])
        trained.append(states)
    torch.testing.assert_close(trained[0][:3], trained[1][:3], rtol=0, atol=0)
    assert not torch.equal(trained[0][3][0], trained[1][3][0])


def test_it_does_not_matter_how_optimizers_share_the_parameters():
    """One optimizer bound twice, and two that have A and B, do what one does; what no optimizer has stays plain."""
    found = []
    for arrangement in ("one", "twice", "two"):
        model, attachment = attached()
        A, B = ([p for n, p in attachment.named_parameters() if n.endswith(end)] for end in ("A", "B"))
        split = [A, B] if arrangement == "two" else [A + B]
        optimizers = [torch.optim.SGD(parameters, lr=0.1) for parameters in split]
        for optimizer in optimizers * (2 if arrangement == "twice" else 1):
            attachment.bind(optimizer)
        for _ in range(3):
            for parameter in attachment.parameters():
                parameter.grad = None
            F.cross_entropy(model(data()[0]), data()[1]).backward()
            for optimizer in optimizers:
                optimizer.step()
        found.append([parameter.detach() for parameter in attachment.parameters()])
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)
    torch.testing.assert_close(found[0], found[2], rtol=1e-12, atol=1e-14)

    model, attachment = attached()
    optimizer = torch.optim.SGD(attachment.modules["2"].parameters(), lr=0.1)
    attachment.bind(optimizer)
    plain = one_step(model, attachment, optimizer, *data())
    after = gradients(attachment)
    for name in plain:
        assert torch.equal(plain[name], after[name]) == name.startswith("4.")


def test_a_closure_is_refused():
    model, attachment = attached()
    optimizer = torch.optim.LBFGS(attachment.parameters())
    attachment.bind(optimizer)
    model(data()[0]).sum().backward()
    with pytest.raises(pm.AdapterError, match="closure"):
        optimizer.step(lambda: model(data()[0]).sum())


def test_a_detached_attachment_leaves_the_optimizer_alone():
    model, attachment = attached()
    optimizer = torch.optim.SGD(attachment.parameters(), lr=0.1)
    attachment.bind(optimizer)
    F.cross_entropy(model(data()[0]), data()[1]).backward()
    plain = gradients(attachment)
    attachment.detach()
    optimizer.step()
    torch.testing.assert_close(gradients(attachment), plain, rtol=0, atol=0)


def test_one_of_two_attachments_trains():
    """The other one is frozen: it is neither measured nor moved."""
    model, first = attached()
    second = pm.attach(model, pm.GRIT(rank=2, targets=["2"], trust_region=None))
    nn.init.normal_(second.modules["2"].lora_B)
    optimizer = torch.optim.SGD(second.parameters(), lr=0.1)
    second.bind(optimizer)
    first.bind(torch.optim.SGD(first.parameters(), lr=0.1))
    F.cross_entropy(model(data()[0]), data()[1]).backward()
    plain = gradients(second)
    for attachment, rows in ((first, 0), (second, 32)):
        count([attachment.modules["2"].curvature])
        assert attachment.modules["2"].curvature.rows == rows
    optimizer.step()
    assert all(not torch.equal(gradient, plain[name]) for name, gradient in gradients(second).items())


@pytest.mark.parametrize(
    "options",
    [
        {"damping": -1},
        {"decay": 1.0},
        {"trust_region": 0},
        {"max_norm": 0},
        {"warmup": -1},
        {"loss": "median"},
        {"fisher": "exact"},
        {"rebalance_every": 0},
        {"energy": 1.5},
        {"energy": 0.9, "rebalance_every": None},
        {"min_rank": 0},
        {"patience": 0},
        {"curvature_penalty": -1},
        {"dora": True},
        {"rank": 0},
    ],
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        pm.GRIT(**options)


def test_other_layers_are_refused():
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4))
    with pytest.raises(pm.TargetError, match="0: GRIT goes on linear layers only, not on a Embedding"):
        pm.attach(model, pm.GRIT(targets=["0", "1"]))
    assert type(model[0]) is nn.Embedding and not pm.attachments(model)
