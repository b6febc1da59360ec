"""GRIT's changes of basis: the product stays, training goes on as if nothing had happened, and ranks may fall."""

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import peft_methods as pm

DOUBLE = torch.float64


def network(dtype=DOUBLE):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(7, 6), nn.Tanh(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4)).to(dtype)


def attached(optimizer=torch.optim.SGD, dtype=DOUBLE, learning_rate=None, **options):
    """A network whose attachment has a B that is not zero, and a bound optimizer."""
    model = network(dtype)
    options = {"rank": 4, "alpha": 4, "targets": ["2", "4"], "min_rank": 1, "patience": 1} | options
    attachment = pm.attach(model, pm.GRIT(**options))
    for part in attachment.modules.values():
        nn.init.normal_(part.lora_B, std=0.5)
    kinds = {"lr": 0.01} | ({"momentum": 0.9} if optimizer is torch.optim.SGD else {}) | (learning_rate or {})
    bound = optimizer(attachment.parameters(), **kinds)
    attachment.bind(bound)
    return model, attachment, bound


def data(rows=32, dtype=DOUBLE):
    generator = torch.Generator().manual_seed(3)
    return torch.randn(rows, 7, generator=generator, dtype=dtype), torch.randint(4, (rows,), generator=generator)


def train(model, optimizer, steps, dtype=DOUBLE):
    x, y = data(dtype=dtype)
    for _ in range(steps):
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss  # alive, as in most loops


def products(attachment):
    return [part.product().detach() for part in attachment.modules.values()]


def ranks(attachment):
    return [len(part.lora_A) for part in attachment.modules.values()]


def test_the_product_stays_and_both_factors_become_the_same_diagonal():
    model, attachment, optimizer = attached(rank=3, damping=0.0, rebalance_every=3)
    before, factors = [], []

    def look(*_):  # after the parameters have moved, and before the basis does
        before.append(products(attachment))
        factors.append([part.curvature.means().clone() for part in attachment.modules.values()])

    optimizer._optimizer_step_post_hooks[-1] = look
    optimizer._optimizer_step_post_hooks.move_to_end(-1, last=False)
    train(model, optimizer, 3)
    torch.testing.assert_close(products(attachment), before[-1], rtol=1e-12, atol=1e-13)
    for part, (a, g) in zip(attachment.modules.values(), factors[-1], strict=True):
        invariant = torch.linalg.eigvals(a @ g).real.sort(descending=True).values
        for factor in part.curvature.means():
            diagonal = factor.diagonal()
            torch.testing.assert_close(factor, diagonal.diag(), rtol=0, atol=1e-12 * diagonal.max().item())
            torch.testing.assert_close(diagonal**2, invariant, rtol=1e-8, atol=0)
            assert (diagonal.diff() <= 0).all()


@pytest.mark.parametrize("trust_region", [None, 1e-4])
def test_with_momentum_training_is_the_same_in_changing_bases(trust_region):
    found = []
    for every in (None, 1):
        model, attachment, optimizer = attached(rank=3, damping=0.0, rebalance_every=every, trust_region=trust_region)
        train(model, optimizer, 30)
        found.append(products(attachment))
    start = products(attached(rank=3)[1])
    for one, other, first in zip(*found, start, strict=True):
        assert (one - first).norm() > 0.01
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)


def test_moments_of_adam_change_basis_with_the_parameters():
    """First moments like A and B; second moments by the squared entries."""
    model, attachment, optimizer = attached(torch.optim.AdamW, rebalance_every=3)
    train(model, optimizer, 2)
    train(model, optimizer, 1)
    # The same three steps without the change of basis.
    other_model, other, other_optimizer = attached(torch.optim.AdamW, rebalance_every=None)
    train(other_model, other_optimizer, 3)
    for part, unchanged in zip(attachment.modules.values(), other.modules.values(), strict=True):
        T = torch.linalg.lstsq(unchanged.lora_A.detach().t(), part.lora_A.detach().t()).solution.t()
        L = torch.linalg.lstsq(unchanged.lora_B.detach(), part.lora_B.detach()).solution
        torch.testing.assert_close(T @ L, torch.eye(4, dtype=DOUBLE), rtol=1e-8, atol=1e-8)
        assert not torch.allclose(T, torch.eye(4, dtype=DOUBLE), atol=0.1)
        for moment, power in (("exp_avg", 1), ("exp_avg_sq", 2)):
            was_A, was_B = (other_optimizer.state[p][moment] for p in (unchanged.lora_A, unchanged.lora_B))
            now_A, now_B = (optimizer.state[p][moment] for p in (part.lora_A, part.lora_B))
            torch.testing.assert_close(now_A, T**power @ was_A, rtol=1e-6, atol=1e-9)
            torch.testing.assert_close(now_B, was_B @ L**power, rtol=1e-6, atol=1e-9)
        assert optimizer.state[part.lora_A]["step"] == 3
        torch.testing.assert_close(part.lora_A.grad, T @ unchanged.lora_A.grad, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("optimizer", ["Adam", "Adamax", "RMSprop", "Adagrad", "Adadelta", "NAdam", "RAdam", "SGD"])
def test_every_optimizer_goes_on_after_the_rank_has_shrunk(optimizer):
    model, attachment, bound = attached(getattr(torch.optim, optimizer), rebalance_every=2, energy=0.6)
    loss = train(model, bound, 2)
    assert max(ranks(attachment)) < 4
    for part in attachment.modules.values():
        for parameter in (part.lora_A, part.lora_B):
            assert parameter.grad.shape == parameter.shape and parameter.is_contiguous()
            assert parameter.untyped_storage().nbytes() == parameter.nbytes  # no view of what was larger
            state = bound.state.get(parameter, {})
            assert all(value.shape in ((), parameter.shape) for value in state.values() if torch.is_tensor(value))
    del loss
    assert torch.isfinite(train(model, bound, 5))


def test_leaving_out_directions_changes_the_model_least():
    """In the Fisher metric, tr(Σ_g D Σ_a Dᵀ) of the rank space, by Σ S² of what is left out, and no projection does it
    with less."""
    model, attachment, optimizer = attached(damping=0.0, rebalance_every=None)
    train(model, optimizer, 2)
    from peft_methods.grit.rebalancing import balance

    a, g = factors = attachment.modules["2"].curvature.means().double()
    T, L, S = balance(factors, 0.0)
    for k in range(1, 5):
        D = torch.eye(4, dtype=DOUBLE) - L[:, :k] @ T[:k]
        change = (g @ D @ a @ D.t()).trace()
        torch.testing.assert_close(change, S[k:].square().sum(), rtol=1e-8, atol=1e-14)
        for seed in range(50):
            R = torch.randn(4, 4, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)
            D = torch.eye(4, dtype=DOUBLE) - R[:, :k] @ torch.linalg.pinv(R[:, :k])
            assert (g @ D @ a @ D.t()).trace() >= change - 1e-14


def test_the_rank_is_the_least_that_has_the_energy():
    from peft_methods.grit.rebalancing import rank_for

    spectrum = torch.tensor([3.0, 2.0, 1.0, 0.0], dtype=DOUBLE)  # squares: 9, 4, 1, 0 of 14
    assert [rank_for(spectrum, energy) for energy in (0.1, 9 / 14, 0.65, 13 / 14, 0.93, 1.0)] == [1, 1, 2, 2, 3, 3]


def test_min_rank_and_patience():
    model, attachment, optimizer = attached(rebalance_every=1, energy=0.1, min_rank=2, patience=3)
    train(model, optimizer, 2)
    assert ranks(attachment) == [4, 4]
    train(model, optimizer, 1)
    assert ranks(attachment) == [2, 2]
    train(model, optimizer, 6)
    assert ranks(attachment) == [2, 2]

    model, attachment, optimizer = attached(rebalance_every=1, energy=0.1, min_rank=8)  # more than there are
    train(model, optimizer, 2)
    assert ranks(attachment) == [4, 4]


def test_what_has_not_been_measured_is_left_alone():
    model, attachment, optimizer = attached(rebalance_every=1)
    part = attachment.modules["2"]
    before = part.lora_A.detach().clone()
    part.lora_A.data.copy_(before)
    optimizer.zero_grad()
    model[4](data()[0][:, :5]).sum().backward()  # only the second layer
    optimizer.step()
    torch.testing.assert_close(part.lora_A.detach(), before, rtol=0, atol=0)


def test_training_goes_on_bit_for_bit_from_a_state_dict(tmp_path):
    model, attachment, optimizer = attached(torch.optim.AdamW, rebalance_every=3, energy=0.95)
    train(model, optimizer, 7)
    saved = copy.deepcopy({"adapter": attachment.state_dict(), "optimizer": optimizer.state_dict()})
    train(model, optimizer, 5)

    resumed_model, resumed, resumed_optimizer = attached(torch.optim.AdamW, rebalance_every=3, energy=0.95)
    resumed.load_state_dict(saved["adapter"])
    resumed_optimizer.load_state_dict(saved["optimizer"])
    train(resumed_model, resumed_optimizer, 5)
    assert ranks(resumed) == ranks(attachment) and ranks(attachment) != [4, 4]
    for name, tensor in attachment.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def test_parameters_alone_start_afresh():
    model, attachment, optimizer = attached()
    train(model, optimizer, 2)
    attachment.load_state_dict({name: parameter.detach() for name, parameter in attachment.named_parameters()})
    for part in attachment.modules.values():
        assert part.curvature.weight == 0 and part.steps == 0


def test_a_state_that_does_not_fit_changes_nothing():
    model, attachment, optimizer = attached()
    train(model, optimizer, 2)
    before = copy.deepcopy(attachment.state_dict())
    small_model, small, small_optimizer = attached(rebalance_every=1, energy=0.5)
    train(small_model, small_optimizer, 3)
    good = copy.deepcopy(small.state_dict())
    for name, wrong in (("4.lora_A", torch.zeros(2, 9)), ("4.lora_B", torch.zeros(9, 2)), ("4.curvature", None)):
        bad = {**good, name: wrong} if wrong is not None else {key: good[key] for key in good if key != name}
        with pytest.raises(pm.AdapterError, match="4.lora_A: shape|4.curvature"):
            attachment.load_state_dict(bad)
        assert attachment.state_dict().keys() == before.keys()
        for key, tensor in attachment.state_dict().items():
            assert torch.equal(tensor, before[key]), key
    attachment.load_state_dict(good)
    assert ranks(attachment) == ranks(small)


def test_a_smaller_rank_is_saved_and_loaded_as_grit(tmp_path):
    model, attachment, optimizer = attached(rebalance_every=2, energy=0.99, alpha=6, damping=0.02)
    train(model, optimizer, 6)
    assert len(set(ranks(attachment))) == 2 and max(ranks(attachment)) < 4
    full = attached()[1].nbytes
    assert attachment.nbytes < full
    expected = model(data()[0])
    attachment.save(tmp_path)
    attachment.detach()
    loaded = pm.load(model, tmp_path)
    torch.testing.assert_close(model(data()[0]), expected, rtol=1e-12, atol=1e-14)
    assert isinstance(loaded.method, pm.GRIT) and loaded.method.damping == 0.02 and loaded.method.energy == 0.99
    assert ranks(loaded) == ranks(attachment)
    optimizer = torch.optim.SGD(loaded.parameters(), lr=0.01)
    loaded.bind(optimizer)
    train(model, optimizer, 3)
    assert all(part.curvature.weight > 0 for part in loaded.modules.values())


def test_a_model_with_a_smaller_rank_is_copied_and_pickled():
    model, attachment, optimizer = attached(rebalance_every=2, energy=0.9)
    train(model, optimizer, 4)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for twin in (copy.deepcopy(model), torch.load(file, weights_only=False)):
        (its,) = pm.attachments(twin)
        assert torch.equal(twin(data()[0]), model(data()[0]))
        state = its.state_dict()
        assert all(torch.equal(state[name], tensor) for name, tensor in attachment.state_dict().items())
        before = copy.deepcopy(attachment.state_dict())
        bound = torch.optim.SGD(its.parameters(), lr=0.01)
        its.bind(bound)
        train(twin, bound, 2)
        assert all(torch.equal(before[name], tensor) for name, tensor in attachment.state_dict().items())
        assert not torch.equal(its.state_dict()["2.curvature"], before["2.curvature"])


@pytest.mark.parametrize("initialization", ["pissa", "olora"])
def test_factors_that_start_from_the_weight_keep_what_is_taken_off(initialization):
    model = network()
    base = model(data()[0])
    method = pm.GRIT(
        rank=3, targets=["2", "4"], initialization=initialization, rebalance_every=2, energy=0.8, min_rank=1
    )
    attachment = pm.attach(model, method)
    torch.testing.assert_close(model(data()[0]), base)
    optimizer = torch.optim.SGD(attachment.parameters(), lr=0.0)
    attachment.bind(optimizer)
    train(model, optimizer, 1)
    torch.testing.assert_close(model(data()[0]), base)
    train(model, optimizer, 1)
    torch.testing.assert_close(products(attachment), products(attachment))
    assert all(part.offset_A.shape[0] == 3 for part in attachment.modules.values())
    assert torch.isfinite(train(model, optimizer, 3))
