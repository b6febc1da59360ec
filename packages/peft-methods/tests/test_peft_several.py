"""Several attachments on one model: trained, frozen, switched, merged and detached one by one, in every order."""

import copy
import io
import itertools
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import peft_methods as pm

DTYPES = [torch.float32, torch.bfloat16]
ORDERS = list(itertools.permutations(range(3)))


class Model(nn.Module):
    """Two blocks in which LoRA and adapter meet on one layer, `linear2`."""

    def __init__(self):
        super().__init__()
        # Not batch_first: of what is not contiguous, torch's linear layer makes other bits if its weight is frozen.
        layer = nn.TransformerEncoderLayer(16, 2, 24, dropout=0.0)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, 5)
        self.head.bias.requires_grad_(False)

    def forward(self, x):
        return self.head(self.encoder(x))


X = torch.randn(2, 4, 16, generator=torch.Generator().manual_seed(0))
LORA = pm.LoRA(rank=2, alpha=4, targets=["linear1", "linear2", "head"])
OTHER_LORA = pm.LoRA(rank=3, alpha=3, targets=["linear2", "head"])
ADAPTER = pm.Adapter("parallel", size=3)
COMPANIES = {
    "LoRA, LoRA, adapter": (LORA, OTHER_LORA, ADAPTER),
    "adapter, BitFit, LoRA": (pm.Adapter("houlsby", size=3), pm.BitFit(), LORA),
    "full, LoRA, LoRA": (pm.FullFineTuning(), LORA, OTHER_LORA),
    "norm, adapter, BitFit": (pm.NormTuning(), ADAPTER, pm.BitFit(r"encoder.*linear\d\.bias|head.*")),
}
MERGEABLE = [methods for methods in COMPANIES.values() if not any(isinstance(m, pm.Adapter) for m in methods)]


@pytest.fixture(params=list(COMPANIES))
def methods(request):
    return COMPANIES[request.param]


def move(attachment, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in attachment.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)


def setup(methods, dtype=torch.float32):
    """The base model, and the model with the methods on it, one after the other, each moved from where it starts."""
    torch.manual_seed(0)
    base = Model().to(dtype)
    model = copy.deepcopy(base)
    attached = []
    for seed, method in enumerate(methods):
        attached.append(pm.attach(model, method))
        move(attached[-1], seed)
    return base, model, attached


def run(model):
    return model(X.to(model.head.weight.dtype))


def bits(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def flags(model):
    return {name: parameter.requires_grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("dtype", DTYPES)
def test_each_alone_is_what_it_is_by_itself(methods, dtype, tmp_path):
    """Names and files too: saved from the company, loaded on the bare model."""
    base, model, attached = setup(methods, dtype)
    for i, attachment in enumerate(attached):
        single = copy.deepcopy(base)
        with attachment.alone():
            expected = run(model)
        assert not torch.equal(expected, run(base))
        attachment.save(tmp_path / str(i))
        loaded = pm.load(single, tmp_path / str(i))
        assert loaded.modules.keys() == attachment.modules.keys()
        torch.testing.assert_close(run(single), expected, rtol=1e-6, atol=1e-6 if dtype == torch.float32 else 1e-2)


def test_loaded_one_after_the_other(methods, tmp_path):
    base, model, attached = setup(methods)
    for i, attachment in enumerate(attached):
        attachment.save(tmp_path / str(i))
        pm.load(base, tmp_path / str(i))
    assert torch.equal(run(base), run(model))
    assert [loaded.modules.keys() for loaded in pm.attachments(base)] == [a.modules.keys() for a in attached]


@pytest.mark.parametrize("dtype", DTYPES)
def test_disabled_in_every_order(methods, dtype):
    base, model, attached = setup(methods, dtype)
    everything, nothing = run(model), run(base)
    for first, second, third in ORDERS:
        with attached[first].disabled():
            without_first = run(model)
            with attached[second].disabled(), attached[third].disabled():
                assert torch.equal(run(model), nothing)
            assert torch.equal(run(model), without_first) and not torch.equal(without_first, everything)
        assert torch.equal(run(model), everything)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("order", ORDERS)
def test_detached_in_every_order(methods, order, dtype):
    base, model, attached = setup(methods, dtype)
    for place, i in enumerate(order):
        with attached[i].disabled():
            expected = run(model)
        attached[i].detach()
        assert torch.equal(run(model), expected)
        assert pm.attachments(model) == [attached[j] for j in range(3) if j not in order[: place + 1]]
    assert same(bits(model), bits(base)) and flags(model) == flags(base)
    assert [type(m) for m in model.modules()] == [type(m) for m in base.modules()]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("undo", ORDERS)
@pytest.mark.parametrize("methods", MERGEABLE, ids=len)
def test_merged_and_unmerged_in_every_order(methods, undo, dtype):
    _, model, attached = setup(methods, dtype)
    before, expected = bits(model), run(model)
    for order in ORDERS:
        for i in order:
            attached[i].merge()
            tolerance = 1e-5 if dtype == torch.float32 else 0.1
            torch.testing.assert_close(run(model), expected, rtol=tolerance, atol=tolerance)
        merged = run(model)
        with attached[order[0]].disabled():
            assert not torch.equal(run(model), merged)
        assert torch.equal(run(model), merged) and all(attachment.merged for attachment in attached)
        for i in undo:
            attached[i].unmerge()
        assert same(bits(model), before) and torch.equal(run(model), expected)


@pytest.mark.parametrize("methods", MERGEABLE, ids=len)
@pytest.mark.parametrize("order", ORDERS)
def test_detached_while_merged(methods, order):
    base, model, attached = setup(methods)
    for attachment in attached:
        attachment.merge()
    for i in order:
        attached[i].detach()
    assert same(bits(model), bits(base)) and flags(model) == flags(base)


def test_full_fine_tuning_is_switched_beneath_a_merged_lora():
    """The merged weight is made of the trained copy, and of the original while that is switched off."""
    base, model, (full, lora) = setup((pm.FullFineTuning(), LORA))
    with full.disabled():
        expected = run(model)
    lora.merge()
    merged = run(model)
    with full.disabled():
        torch.testing.assert_close(run(model), expected, rtol=1e-5, atol=1e-5)
        with lora.disabled():
            assert torch.equal(run(model), run(base))
    assert torch.equal(run(model), merged)
    full.detach()
    torch.testing.assert_close(run(model), expected, rtol=1e-5, atol=1e-5)
    lora.detach()
    assert same(bits(model), bits(base)) and flags(model) == flags(base)


@pytest.mark.parametrize("merged", [False, True])
def test_lora_and_adapter_on_one_layer_in_either_order(merged):
    """The adapter reads what the layer returns with the LoRA in it: else merging would change the result."""
    results = []
    for methods in ((LORA, pm.Adapter("pfeiffer", size=3)), (pm.Adapter("pfeiffer", size=3), LORA)):
        base, model, attached = setup(methods)
        first = attached[0].modules["encoder.layers.0.linear2"]
        assert "encoder.layers.0.linear2" in attached[1].modules and first is not None
        for attachment in sorted(attached, key=lambda attachment: attachment.method is LORA):
            torch.manual_seed(1)
            for parameter in attachment.parameters():
                nn.init.normal_(parameter, std=0.1)
        if merged:
            next(attachment for attachment in attached if attachment.method is LORA).merge()
        results.append(run(model))
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-5)
    lora, adapter = sorted(attached, key=lambda attachment: attachment.method is not LORA)
    x = torch.randn(3, 24)
    base = base.encoder.layers[0].linear2
    lora, adapter = (attachment.modules["encoder.layers.0.linear2"] for attachment in (lora, adapter))
    y = base(x) + 2 * x @ lora.lora_A.T @ lora.lora_B.T
    torch.testing.assert_close(
        model.encoder.layers[0].linear2(x), y + adapter.up(F.relu(adapter.down(y))), rtol=1e-5, atol=1e-5
    )


def test_one_is_trained_while_the_others_are_frozen(methods):
    _, model, attached = setup(methods)
    assert flags_of(attached) == [False, False, True]  # the latest
    for trained in (0, 1, 2):
        for i, attachment in enumerate(attached):
            attachment.requires_grad_(i == trained)
        own = {id(parameter) for parameter in attached[trained].parameters()}
        assert {id(parameter) for parameter in model.parameters() if parameter.requires_grad} == own
        before = [[p.clone() for p in attachment.parameters()] for attachment in attached]
        optimizer = torch.optim.SGD([p for attachment in attached for p in attachment.parameters()], lr=0.1)
        run(model).logsumexp(-1).mean().backward()
        assert all(attachment.without_gradient() == [] for attachment in attached)
        optimizer.step()
        optimizer.zero_grad()
        for i, attachment in enumerate(attached):
            equal = [torch.equal(p, q) for p, q in zip(attachment.parameters(), before[i], strict=True)]
            assert not any(equal) if i == trained else all(equal)


def flags_of(attached):
    return [{p.requires_grad for p in attachment.parameters()} == {True} for attachment in attached]


def test_detaching_gives_the_flags_back_as_they_were_found():
    _, _, (first, second, third) = setup((LORA, OTHER_LORA, ADAPTER))
    first.requires_grad_()
    third.detach()
    assert flags_of([first, second]) == [False, True]
    second.detach()
    assert flags_of([first]) == [True]


def test_copies_and_pickles(methods):
    _, model, attached = setup(methods)
    expected = run(model)
    with attached[1].disabled():
        without = run(model)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    for twin in (copy.deepcopy(model), torch.load(buffer, weights_only=False)):
        carried = pm.attachments(twin)
        assert [attachment.method for attachment in carried] == [attachment.method for attachment in attached]
        assert torch.equal(run(twin), expected)
        with carried[1].disabled():
            assert torch.equal(run(twin), without) and torch.equal(run(model), expected)
        for attachment in carried:
            attachment.detach()
        assert pm.attachments(twin) == [] and torch.equal(run(model), expected)


def test_targets_are_names_of_the_bare_model():
    _, model, attached = setup((LORA, ADAPTER))
    attached.append(pm.attach(model, LORA))
    attached.append(pm.attach(model, pm.LoRA()))
    assert attached[2].modules.keys() == attached[0].modules.keys()
    linears = {f"encoder.layers.{i}.linear{j}" for i in (0, 1) for j in (1, 2)} | {"head"}
    assert attached[3].modules.keys() == linears  # none of the adapters' own
    with pytest.raises(pm.TargetError, match="'down' matches no module"):
        pm.attach(model, pm.LoRA(targets=["down"]))
    assert len(pm.attachments(model)) == 4


def test_merged_weights_can_stay_while_others_go_on():
    base, model, (lora, adapter) = setup((LORA, ADAPTER))
    lora.merge()
    expected = run(model)
    lora.detach(keep_merged=True)
    assert torch.equal(run(model), expected) and pm.attachments(model) == [adapter]
    adapter.detach()
    assert flags(model) == flags(base) and not same(bits(model), bits(base))


def test_what_cannot_be_kept_or_trained():
    _, model, (full, lora) = setup((pm.FullFineTuning(), LORA))
    lora.merge()
    expected = bits(model)
    with pytest.raises(pm.AdapterError, match="train the model's weights; detach them first"):
        lora.detach(keep_merged=True)
    with pytest.raises(pm.AdapterError, match="others are merged into the weights"):
        pm.attach(model, pm.BitFit())
    full.merge()
    with pytest.raises(pm.AdapterError, match="others are merged"):
        full.detach(keep_merged=True)
    assert same(bits(model), expected) and pm.attachments(model) == [full, lora]
    lora.unmerge()
    full.unmerge()
    with pytest.raises(pm.AdapterError, match="self_attn.in_proj_bias, .*: trained by another attachment already"):
        pm.attach(model, pm.BitFit())
    with full.disabled(), pytest.raises(pm.AdapterError, match="trained by another attachment already"):
        pm.attach(model, pm.BitFit())


def test_training_the_models_weights_over_merged_ones_is_refused():
    _, model, (lora,) = setup((LORA,))
    lora.merge()
    before = bits(model)
    with pytest.raises(pm.AdapterError, match="others are merged into the weights; unmerge"):
        pm.attach(model, pm.FullFineTuning())
    assert same(bits(model), before) and lora.merged
    other = pm.attach(model, OTHER_LORA)
    assert other.total == lora.total + other.trainable  # the merged weights are counted once


def test_a_detached_one_cannot_be_switched():
    base, model, (first,) = setup((pm.BitFit(),))
    first.detach()
    second = pm.attach(model, pm.BitFit())
    move(second, 5)
    expected = run(model)
    with pytest.raises(pm.AdapterError, match="is detached"), first.disabled():
        pass
    assert torch.equal(run(model), expected)
    with second.disabled():
        second.detach()
    assert same(bits(model), bits(base))


def test_parameters_without_gradient_are_named_once():
    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            return self.used(x)

    model = Unused()
    lora, bias = pm.attach(model, pm.LoRA(rank=1, targets=["used", "unused"])), pm.attach(model, pm.BitFit("used.*"))
    lora.requires_grad_()
    (group,) = lora.parameter_groups(0.1)
    assert group["params"] == lora.parameters() and group["lr"] == 0.1
    optimizer = torch.optim.SGD([group, *bias.parameter_groups(0.2)])
    lora.bind(optimizer)
    bias.bind(optimizer)
    model(torch.ones(1, 4)).sum().backward()
    assert lora.without_gradient() == ["unused.lora_A", "unused.lora_B"] and bias.without_gradient() == []
    with pytest.warns(UserWarning, match="2 of 4 trainable parameters got no gradient.*unused.lora_A, unused.lora_B;"):
        optimizer.step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step()
    lora.requires_grad_(False)
    assert lora.without_gradient() == []
