"""Target matching against a brute-force definition, and its errors."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import peft_methods as pm
from peft_methods.targets import exact_targets, find_targets

NAMES = ["a", "b", "ab", "fc", "q_proj"]


class Block(nn.Module):
    def __init__(self, size=4):
        super().__init__()
        self.q_proj, self.v_proj = nn.Linear(size, size), nn.Linear(size, size)
        self.norm = nn.LayerNorm(size)

    def forward(self, x):
        return self.v_proj(self.q_proj(self.norm(x)))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.blocks = nn.Embedding(10, 4), nn.Sequential(Block(), Block())
        self.lm_head = nn.Linear(4, 10, bias=False)


def tree(draw_names):
    """A module tree from dotted paths: containers inside, linear layers at the ends."""
    root = nn.Module()
    for path in draw_names:
        parent, parts = root, path.split(".")
        for part in parts[:-1]:
            if part not in parent._modules:
                parent.add_module(part, nn.Module())
            parent = parent._modules[part]
            if isinstance(parent, nn.Linear):
                break
        else:
            if parts[-1] not in parent._modules:
                parent.add_module(parts[-1], nn.Linear(2, 2))
    return root


paths = st.lists(st.sampled_from(NAMES), min_size=1, max_size=3).map(".".join)


@given(st.lists(paths, min_size=1, max_size=8), st.lists(paths, min_size=1, max_size=3))
@settings(max_examples=200, deadline=None)
def test_suffixes_match_at_dot_boundaries(modules, entries):
    model = tree(modules)
    named = dict(model.named_modules())
    expected = {n for n in named if n and any(n == e or n.endswith("." + e) for e in entries)}
    dead = [e for e in entries if not any(n == e or n.endswith("." + e) for n in expected)]
    if dead or not all(isinstance(named[n], nn.Linear) for n in expected):
        with pytest.raises(pm.TargetError):
            find_targets(model, entries)
    else:
        assert find_targets(model, entries).keys() == expected


@given(st.lists(paths, min_size=1, max_size=8), st.data())
@settings(max_examples=200, deadline=None)
def test_exact_targets_match_exactly(modules, data):
    model = tree(modules)
    linear = [n for n, m in model.named_modules() if isinstance(m, nn.Linear)]
    chosen = data.draw(st.lists(st.sampled_from(linear), min_size=1, unique=True))
    targets = exact_targets(model, chosen)
    assert find_targets(model, targets).keys() == set(chosen)
    if isinstance(targets, str):  # as peft reads it
        assert {n for n, _ in model.named_modules() if re.fullmatch(targets[3:], n)} == set(chosen)


def test_regular_expression_matches_the_whole_name():
    found = find_targets(Model(), r"re:blocks\.1\.[qv]_proj")
    assert list(found) == ["blocks.1.q_proj", "blocks.1.v_proj"]
    with pytest.raises(pm.TargetError):
        find_targets(Model(), r"re:1\.[qv]_proj")


def test_all_linear_leaves_the_head():
    model = Model()
    body = ["blocks.0.q_proj", "blocks.0.v_proj", "blocks.1.q_proj", "blocks.1.v_proj"]
    assert list(find_targets(model, "all-linear")) == body
    model.lm_head, model.score = None, nn.Linear(4, 10, bias=False)
    assert list(find_targets(model, "all-linear")) == [*body, "score"]
    model.get_output_embeddings = lambda: model.score
    assert list(find_targets(model, "all-linear")) == body
    del model.get_output_embeddings
    model.score.weight = model.embed.weight  # a tied head
    assert list(find_targets(model, "all-linear")) == body


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (["q_proj", "v_porj"], r"'v_porj' matches no module; nearest: v_proj"),
        (["0.k_proj"], r"'0.k_proj' matches no module; nearest: 0\.[qv]_proj"),
        ("re:blocks.0.x_proj", r"matches no module; nearest: blocks\.0\."),
        (["norm"], r"'norm' matches 'blocks.0.norm', a LayerNorm"),
        (["blocks"], r"a Sequential"),
    ],
)
def test_entries_that_cannot_be_targets(targets, message):
    model = Model()
    with pytest.raises(pm.TargetError, match=message):
        pm.attach(model, pm.LoRA(targets=targets))
    assert all(p.requires_grad for p in model.parameters()) and isinstance(model.lm_head, nn.Linear)


def test_attention_output_is_refused_and_left_out():
    """nn.MultiheadAttention reads the weight of its output projection and never calls it."""
    layer = nn.TransformerEncoderLayer(8, 2, 16)
    assert list(find_targets(layer, "all-linear")) == ["linear1", "linear2"]
    with pytest.raises(pm.TargetError, match="without calling it"):
        find_targets(layer, ["out_proj"])


def test_shared_module_is_wrapped_once_everywhere():
    model = nn.Module()
    model.first = nn.Sequential(nn.Linear(4, 4))
    model.second = nn.ModuleDict({"again": model.first[0], "other": nn.Linear(4, 4)})
    model.alias = model.first[0]
    attachment = pm.attach(model, pm.LoRA(targets=["again"]))
    assert list(attachment.modules) == ["first.0"]
    assert model.first[0] is model.second["again"] is model.alias is attachment.modules["first.0"]
    attachment.detach()
    assert model.first[0] is model.second["again"] is model.alias and type(model.alias) is nn.Linear


@pytest.mark.parametrize(
    "options",
    [{"rank": 0}, {"rank": 2.5}, {"dropout": 1.0}, {"dropout": -0.1}, {"alpha": float("nan")}, {"targets": []},
     {"targets": "q_proj"}, {"targets": "re:("}, {"targets": ["a", ""]}],
)  # fmt: skip
def test_options_are_checked(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        pm.LoRA(**options)


def test_scale():
    assert pm.LoRA().scale_of(rank=16, alpha=8) == 0.5
    assert pm.LoRA(rank_stabilized=True).scale_of(rank=16, alpha=8) == 2.0


def test_the_model_itself_is_no_target():
    with pytest.raises(pm.TargetError):
        pm.attach(nn.Linear(2, 2), pm.LoRA(targets="re:.*"))
    with pytest.raises(pm.TargetError, match="no linear layer"):
        pm.attach(nn.Sequential(nn.ReLU()), pm.LoRA())
