"""Adapters on modules that are named, and the errors of names and options that make no sense."""

import pytest
import torch
from torch import nn

import peft_methods as pm


class Tupled(nn.Module):
    """Returns what a transformers attention returns, and takes what it takes."""

    def __init__(self, result):
        super().__init__()
        self.linear, self.result = nn.Linear(6, 6), result

    def forward(self, hidden_states=None, scale=1.0, x=None):
        return self.result(self.linear(x if hidden_states is None else hidden_states) * scale)


class Model(nn.Module):
    def __init__(self, result=lambda y: (y, "weights")):
        super().__init__()
        self.embed, self.norm = nn.Embedding(9, 6), nn.LayerNorm(6)
        self.inner = Tupled(result)
        self.mlp = nn.Sequential(nn.Linear(6, 12), nn.GELU(), nn.Linear(12, 6))
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.conv, self.dropout = nn.Conv1d(6, 6, 1), nn.Dropout()
        self.branches = nn.ModuleList([nn.Linear(6, 4)])

    def forward(self, tokens):
        x = self.norm(self.embed(tokens))
        x = x + self.inner(hidden_states=x, scale=2.0)[0]
        x = x + self.attention(x, x, x)[0]
        return self.branches[0](x + self.mlp(x))


TOKENS = torch.tensor([[1, 5, 7], [4, 8, 0]])


def randomize(attachment):
    for parameter in attachment.parameters():
        nn.init.normal_(parameter, std=0.5)


def bottleneck(part, x):
    return part.scale * part.up(torch.relu(part.down(x)))


@pytest.mark.parametrize("name", ["embed", "norm", "mlp", "mlp.0", "branches.0"])
def test_sequential_on_a_named_module(name):
    torch.manual_seed(0)
    model = Model()
    host = model.get_submodule(name)
    x = TOKENS if name == "embed" else torch.randn(2, 3, 6)
    expected = host(x)
    attachment = pm.attach(model, pm.Adapter("pfeiffer", size=2, targets=[name]))
    randomize(attachment)
    torch.testing.assert_close(host(x), expected + bottleneck(attachment.modules[name], expected))


@pytest.mark.parametrize("name", ["norm", "mlp", "mlp.0", "branches.0"])
def test_parallel_on_a_named_module(name):
    """A layer that changes the width has an adapter from the one to the other."""
    torch.manual_seed(0)
    model = Model()
    host, x = model.get_submodule(name), torch.randn(2, 3, 6)
    expected = host(x)
    attachment = pm.attach(model, pm.Adapter("parallel", size=2, targets=[name]))
    randomize(attachment)
    torch.testing.assert_close(host(x), expected + bottleneck(attachment.modules[name], x))


@pytest.mark.parametrize("placement", ["pfeiffer", "parallel"])
def test_tuples_and_keyword_arguments(placement):
    torch.manual_seed(0)
    model = Model()
    attachment = pm.attach(model, pm.Adapter(placement, size=2, targets=["inner", "attention"]))
    randomize(attachment)
    x = torch.randn(2, 3, 6)
    part = attachment.modules["inner"]
    result = model.inner(scale=3.0, hidden_states=x)
    with attachment.disabled():
        y, rest = model.inner(x, 3.0)
        attended, weights = model.attention(x, x, x)
    assert result[1] == rest == "weights"
    assert not torch.equal(result[0], y)
    torch.testing.assert_close(result[0], y + bottleneck(part, x if placement == "parallel" else y))
    part = attachment.modules["attention"]
    adapted, also = model.attention(x, x, x)
    torch.testing.assert_close(adapted, attended + bottleneck(part, x if placement == "parallel" else attended))
    assert torch.equal(weights, also)


def test_names_of_an_expression_and_within():
    model = Model()
    method = pm.Adapter("pfeiffer", size=2, targets=r"re:mlp\.[02]|norm", within=r"mlp\..*")
    assert list(pm.attach(model, method).modules) == ["mlp.0", "mlp.2"]


def test_a_sequential_gets_no_further_layer():
    model = Model()
    attachment = pm.attach(model, pm.Adapter("pfeiffer", targets=["mlp"]))
    assert len(model.mlp) == 3 and next(attachment.named_parameters())[0] == "mlp.down.weight"
    assert {id(p) for p in attachment.parameters()} == {id(p) for p in model.parameters() if p.requires_grad}


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ("auto", "finds no transformer blocks with attention and MLP in Model; give a list"),
        (["mpl"], "'mpl' matches no module; nearest: mlp"),
        (["conv"], "'conv', a Conv1d: only a module with linear layers, norm or embedding can be"),
        (["dropout"], "'dropout', a Dropout: only"),
        (["branches"], "'branches', a ModuleList: only"),
        (["attention.out_proj"], "its weight is used without calling it"),
    ],
)
def test_targets_that_cannot_be(targets, message):
    model = Model()
    with pytest.raises(pm.TargetError, match=message):
        pm.attach(model, pm.Adapter(targets=targets))
    assert pm.attachments(model) == [] and all(parameter.requires_grad for parameter in model.parameters())


def test_an_embedding_has_no_input_to_read():
    with pytest.raises(pm.TargetError, match="'embed', a Embedding: only a module with linear layers or norm can"):
        pm.attach(Model(), pm.Adapter("parallel", targets=["embed"]))


def test_within_that_matches_nothing():
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16), 1)
    with pytest.raises(
        pm.TargetError, match=r"within='decoder.*': matches none of layers.0.self_attn, layers.0.linear2"
    ):
        pm.attach(model, pm.Adapter(within="decoder.*"))


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (lambda y: {"hidden": y}, "inner: returns dict, where an adapter needs a tensor of floating point"),
        (lambda y: (), "inner: returns tuple"),
        (lambda y: y.argmax(-1), "inner: returns torch.int64"),
        (lambda y: y[..., :4], r"inner: returns \[2, 3, 4\].*expect \[..., 6\]; name one of those"),
    ],
)
def test_outputs_that_cannot_be_adapted(result, message):
    model = Model(result)
    pm.attach(model, pm.Adapter("pfeiffer", targets=["inner"]))
    with pytest.raises(pm.AdapterError, match=message):
        model.inner(torch.randn(2, 3, 6))


@pytest.mark.parametrize("placement", ["pfeiffer", "parallel"])
def test_a_module_keeps_the_dtype_of_its_output(placement):
    model = Model(lambda y: y.bfloat16())
    randomize(pm.attach(model, pm.Adapter(placement, targets=["inner"])))
    assert model.inner(torch.randn(2, 6)).dtype == torch.bfloat16


def test_inputs_that_cannot_be_read():
    model = Model()
    pm.attach(model, pm.Adapter("parallel", targets=["inner"]))
    with pytest.raises(pm.AdapterError, match="inner: is given float, where an adapter needs a tensor"):
        model.inner(scale=2.0, x=torch.randn(2, 6))


@pytest.mark.parametrize(
    "options",
    [
        {"placement": "both"},
        {"activation": "softmax"},
        {"initialization": "zeros"},
        {"reduction": 0},
        {"size": 0},
        {"size": 2.0},
        {"scale": float("nan")},
        {"targets": []},
        {"targets": "all"},
        {"targets": "re:("},
        {"within": "("},
    ],
)
def test_options_that_make_no_sense(options):
    (option,) = options
    with pytest.raises(ValueError, match=f"^{option}="):
        pm.Adapter(**options)


def test_scale_by_default():
    assert (pm.Adapter().scale, pm.Adapter("parallel").scale, pm.Adapter("parallel", scale=1).scale) == (1, 4, 1)
