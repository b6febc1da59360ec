"""LoRA's options against Hugging Face PEFT, in both directions, on a model with every kind of layer."""

import copy

import pytest
import torch
from torch import nn

import peft_methods as pm

peft = pytest.importorskip("peft")


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2, self.norm = nn.Linear(8, 12), nn.Linear(12, 8, bias=False), nn.LayerNorm(8)

    def forward(self, x):
        return x + self.fc2(torch.tanh(self.fc1(self.norm(x))))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.words = nn.Embedding(11, 8, padding_idx=0)
        self.layers = nn.ModuleList([Block(), Block()])
        self.head = nn.Linear(8, 5)

    def forward(self, image, words):
        x = torch.cat([self.patches(image).flatten(2).transpose(1, 2), self.words(words)], 1)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


def base(dtype=torch.float64):
    torch.manual_seed(0)
    return Model().to(dtype).eval()


def batch(dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 3, 6, 6, generator=generator).to(dtype), torch.tensor([[1, 0, 3], [10, 3, 3]])


FC = ["fc1", "fc2"]
ALL = ["patches", "words", "fc1", "fc2", "head"]
PAIRS = {  # our options, peft's
    "plain": (dict(targets=FC), dict(target_modules=FC)),
    "every layer": (dict(targets=ALL), dict(target_modules=ALL)),
    "rslora": (dict(targets=ALL, rank_stabilized=True), dict(target_modules=ALL, use_rslora=True)),
    "dora": (dict(targets=FC, dora=True), dict(target_modules=FC, use_dora=True)),
    "patterns": (
        dict(targets=FC, rank_pattern={r"layers\.1\.fc1": 5}, alpha_pattern={"fc2": 3}),
        dict(target_modules=FC, rank_pattern={r"layers\.1\.fc1": 5}, alpha_pattern={"fc2": 3}),
    ),
    "all biases": (dict(targets=FC, bias="all"), dict(target_modules=FC, bias="all")),
    "biases of targets": (
        dict(targets=["fc1", "head"], bias="targets"),
        dict(target_modules=["fc1", "head"], bias="lora_only"),
    ),
    "trained whole": (
        dict(targets=FC, train_also=["head", "norm"]),
        dict(target_modules=FC, modules_to_save=["head", "norm"]),
    ),
}


@pytest.fixture(params=list(PAIRS))
def pair(request):
    ours, theirs = PAIRS[request.param]
    return {"rank": 3, "alpha": 6, **ours}, {"r": 3, "lora_alpha": 6, **theirs}


def train(model):
    """Stands for training: everything that is trained has moved, magnitudes by a little."""
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.2 * torch.randn_like(parameter)


TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 0.06}


def near(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=0, atol=TOLERANCE[expected.dtype] * expected.abs().max().item())


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_ours_in_peft(pair, dtype, tmp_path):
    model = base(dtype)
    attachment = pm.attach(model, pm.LoRA(**pair[0]))
    train(model)
    attachment.save(tmp_path)
    theirs = peft.PeftModel.from_pretrained(base(dtype), tmp_path).eval()
    expected = model(*batch(dtype))
    assert not torch.allclose(expected, base(dtype)(*batch(dtype)), atol=0.1)
    near(theirs(*batch(dtype)), expected)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_theirs_here(pair, dtype, tmp_path):
    theirs = peft.get_peft_model(base(dtype), peft.LoraConfig(**pair[1])).eval()
    train(theirs)
    theirs.save_pretrained(tmp_path)
    model = base(dtype)
    pm.load(model, tmp_path)
    expected = theirs(*batch(dtype))
    near(model(*batch(dtype)), expected)


def test_gradients_are_those_of_peft(pair, tmp_path):
    model = base()
    attachment = pm.attach(model, pm.LoRA(**pair[0]))
    train(model)
    attachment.save(tmp_path)
    theirs = peft.PeftModel.from_pretrained(base(), tmp_path, is_trainable=True).eval()
    for each in (model, theirs):
        each(*batch()).square().mean().backward()
    ours = {name: parameter.grad for name, parameter in attachment.named_parameters()}
    names = (".default", ".base_layer", ".weight", ".modules_to_save", "base_model.model.", "_vector", "_embedding")
    found = 0
    for name, parameter in theirs.named_parameters():
        if parameter.grad is None:
            continue
        for part in names if "lora_" in name else (*names[:2], *names[3:5]):
            name = name.replace(part, "")
        name = name.replace("lora_magnitude", "magnitude")
        torch.testing.assert_close(ours[name], parameter.grad, rtol=1e-8, atol=1e-12, msg=name)
        found += 1
    assert found == len(ours)


def test_detached_merged_and_loaded(pair, tmp_path):
    model, original = base(), base()
    attachment = pm.attach(model, pm.LoRA(**pair[0]))
    train(model)
    expected = model(*batch())
    attachment.merge()
    torch.testing.assert_close(model(*batch()), expected, rtol=0, atol=1e-10)
    attachment.unmerge()
    assert torch.equal(model(*batch()), expected)
    with attachment.disabled():
        assert torch.equal(model(*batch()), original(*batch()))
    attachment.save(tmp_path)
    attachment.detach()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), original.parameters(), strict=True))
    pm.load(model, tmp_path)
    torch.testing.assert_close(model(*batch()), expected, rtol=0, atol=1e-12)


def test_all_linear_leaves_embeddings_and_convolutions_alone():
    assert set(pm.attach(base(), pm.LoRA()).modules) == {
        "layers.0.fc1", "layers.0.fc2", "layers.1.fc1", "layers.1.fc2", "head"}  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(rank_pattern={"fc3": 2}), "pattern 'fc3' matches none"),
        (dict(train_also=["hed"]), "'hed' matches no module"),
        (dict(targets=["words"], dora=True), "words: DoRA"),
        (dict(targets=["patches"], initialization="pissa"), "patches: .*PiSSA"),
        (dict(targets=["norm"]), "only a linear layer, embedding or 2-D convolution"),
    ],
)
def test_what_does_not_fit_the_model(options, message):
    model = base()
    with pytest.raises(pm.TargetError, match=message):
        pm.attach(model, pm.LoRA(**{"targets": FC, **options}))
    assert pm.attachments(model) == [] and all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    "options",
    [
        dict(initialization="eva"), dict(bias="some"), dict(rank_pattern={"fc": 0}), dict(rank_pattern={"(": 2}),
        dict(alpha_pattern={"fc": float("nan")}), dict(learning_rate_ratio=0),
    ],
)  # fmt: skip
def test_wrong_options(options):
    with pytest.raises(ValueError, match="give|known|not a regular"):
        pm.LoRA(**options)


def test_grouped_convolutions_are_refused():
    with pytest.raises(pm.TargetError, match="groups"):
        pm.attach(nn.Sequential(nn.Conv2d(4, 4, 3, groups=2)), pm.LoRA(targets=["0"]))


def test_tied_head_is_left_alone():
    model = nn.ModuleDict({"words": nn.Embedding(7, 4), "head": nn.Linear(4, 7, bias=False)})
    model["head"].weight = model["words"].weight
    before = copy.deepcopy(model)
    x = torch.randn(2, 4)
    attachment = pm.attach(model, pm.LoRA(rank=2, targets=["words"]))
    nn.init.normal_(attachment.modules["words"].lora_A)
    for merged in (False, True):
        if merged:
            attachment.merge()
        assert torch.equal(model["head"](x), before["head"](x))
        assert not torch.allclose(model["words"](torch.arange(7)), before["words"](torch.arange(7)))
    attachment.detach()
    assert model["head"].weight is model["words"].weight
