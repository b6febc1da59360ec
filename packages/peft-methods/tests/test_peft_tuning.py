"""Full fine-tuning, BitFit and norm tuning: what they train, and that the base model is never lost."""

import copy
import io
import types

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils.checkpoint import checkpoint

import peft_methods as pm

METHODS = [pm.FullFineTuning(), pm.BitFit(), pm.NormTuning()]
DTYPES = [torch.float32, torch.bfloat16]


class Model(nn.Module):
    """A parameter at the root, tied weights, a frozen bias, a buffer, a block in two places."""

    def __init__(self):
        super().__init__()
        self.start = nn.Parameter(torch.randn(8))
        self.embed = nn.Embedding(11, 8)
        block = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8), nn.LayerNorm(8))
        self.blocks = nn.ModuleList([block, nn.Sequential(nn.Linear(8, 8), nn.RMSNorm(8)), block])
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.embed.weight
        self.blocks[1][0].bias.requires_grad_(False)
        self.register_buffer("scale", torch.tensor(0.5))
        self.checkpointing = False

    def forward(self, tokens):
        x = self.embed(tokens) + self.start
        for block in self.blocks:
            x = x + self.scale * (checkpoint(block, x, use_reentrant=False) if self.checkpointing else block(x))
        return self.head(x)


NAMES = {
    "FullFineTuning": ["start", "embed.weight", "blocks.0.0.weight", "blocks.0.0.bias", "blocks.0.2.weight",
                       "blocks.0.2.bias", "blocks.0.3.weight", "blocks.0.3.bias", "blocks.1.0.weight",
                       "blocks.1.0.bias", "blocks.1.1.weight"],
    "BitFit": ["blocks.0.0.bias", "blocks.0.2.bias", "blocks.0.3.bias", "blocks.1.0.bias"],
    "NormTuning": ["blocks.0.3.weight", "blocks.0.3.bias", "blocks.1.1.weight"],
}  # fmt: skip
TOKENS = torch.tensor([[1, 5, 7, 2], [4, 10, 8, 0]])


def setup(method, dtype=torch.float32):
    torch.manual_seed(0)
    model = Model().to(dtype)
    return model, copy.deepcopy(model), pm.attach(model, method)


def bits(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


def loss_of(model):
    return model(TOKENS).float().logsumexp(-1).mean()


def step(model, optimizer):
    loss_of(model).backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_trains_as_torch_does_without_us(method, dtype):
    """Three steps of AdamW, against the untouched model of which the same parameters are given to the optimizer."""
    model, original, attachment = setup(method, dtype)
    names = NAMES[type(method).__name__]
    assert [name for name, _ in attachment.named_parameters()] == names
    assert torch.equal(model(TOKENS), original(TOKENS))
    reference = dict(original.named_parameters())
    expected = torch.optim.AdamW([reference[name] for name in names], lr=0.1)
    optimizer = torch.optim.AdamW(attachment.parameters(), lr=0.1)
    attachment.bind(optimizer)
    for parameter in original.parameters():
        parameter.requires_grad_(True)
    for _ in range(3):
        step(model, optimizer)
        step(original, expected)
    assert same(bits(model), bits(original))
    assert model.head.weight is model.embed.weight


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_promises_of_an_attachment(method, dtype, tmp_path):
    model, original, attachment = setup(method, dtype)
    optimizer = torch.optim.AdamW(attachment.parameters(), lr=0.1)
    step(model, optimizer)
    base, tuned, weights = original(TOKENS), model(TOKENS), bits(model)
    assert not torch.equal(base, tuned)
    own = {id(p) for p in attachment.parameters()}
    assert {id(p) for p in model.parameters() if p.requires_grad} == own
    assert (
        attachment.total == sum(p.numel() for p in original.parameters()) == sum(p.numel() for p in model.parameters())
    )
    with attachment.disabled():
        assert torch.equal(model(TOKENS), base) and same(bits(model), bits(original))
    attachment.merge()  # what is trained is in the weights already
    assert torch.equal(model(TOKENS), tuned)
    with attachment.disabled():
        assert torch.equal(model(TOKENS), base)
    attachment.unmerge()
    assert same(bits(model), weights)
    attachment.save(tmp_path)
    assert load_file(tmp_path / "adapter_model.safetensors").keys() == dict(attachment.named_parameters()).keys()
    other = copy.deepcopy(original)
    loaded = pm.load(other, tmp_path)
    assert loaded.method == method and torch.equal(other(TOKENS), tuned)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    for twin in (copy.deepcopy(model), torch.load(buffer, weights_only=False)):
        assert torch.equal(twin(TOKENS), tuned) and twin.head.weight is twin.embed.weight
        (carried,) = pm.attachments(twin)
        for parameter in carried.parameters():
            parameter.data.zero_()
        assert not torch.equal(twin(TOKENS), tuned) and torch.equal(model(TOKENS), tuned)
        carried.detach()
        assert torch.equal(twin(TOKENS), base)
    attachment.detach()
    assert same(bits(model), bits(original)) and model.head.weight is model.embed.weight
    assert [p.requires_grad for p in model.parameters()] == [p.requires_grad for p in original.parameters()]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_training_goes_on_after_the_base_was_looked_at(method):
    """The same optimizer, with its moments: as if nothing had been switched off or copied between the steps."""
    results = []
    for interrupted in (False, True):
        model, original, attachment = setup(method)
        optimizer = torch.optim.AdamW(attachment.parameters(), lr=0.1)
        for _ in range(3):
            step(model, optimizer)
            if interrupted:
                with attachment.disabled():
                    assert torch.equal(model(TOKENS), original(TOKENS))
                attachment.merge()
                attachment.unmerge()
        results.append(bits(model))
    assert same(*results)


def test_kept_weights_stay_in_the_model():
    model, original, attachment = setup(pm.FullFineTuning())
    step(model, torch.optim.SGD(attachment.parameters(), lr=1))
    tuned = bits(model)
    attachment.merge()
    attachment.detach(keep_merged=True)
    assert same(bits(model), tuned) and not same(tuned, bits(original))
    assert [p.requires_grad for p in model.parameters()] == [p.requires_grad for p in original.parameters()]
    assert pm.attachments(model) == [] and model.head.weight is model.embed.weight


@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_gradient_checkpointing(method):
    gradients = []
    for checkpointing in (False, True):
        model, _, attachment = setup(method)
        model.checkpointing = checkpointing
        loss_of(model).backward()
        gradients.append([p.grad for p in attachment.parameters()])
    assert all(torch.equal(a, b) and a.any() for a, b in zip(*gradients, strict=True))


def test_compiled():
    torch._dynamo.reset()
    model, original, attachment = setup(pm.FullFineTuning())
    compiled = torch.compile(model, backend="aot_eager")
    step(model, torch.optim.SGD(attachment.parameters(), lr=1))
    torch.testing.assert_close(compiled(TOKENS), model(TOKENS))
    with attachment.disabled():
        torch.testing.assert_close(compiled(TOKENS), original(TOKENS))
    torch.testing.assert_close(compiled(TOKENS), model(TOKENS))


def test_the_model_can_change_its_dtype():
    """And its device, for which torch has one way: the originals are out of its sight, and follow when they return."""
    model, original, attachment = setup(pm.FullFineTuning())
    step(model, torch.optim.SGD(attachment.parameters(), lr=1))
    tuned, other = model.double()(TOKENS), original.double()(TOKENS)
    with attachment.disabled():
        assert torch.equal(model(TOKENS), other)
        model.to(torch.float32)
    assert {p.dtype for p in attachment.parameters()} == {torch.float32}
    torch.testing.assert_close(model(TOKENS).double(), tuned, rtol=1e-5, atol=1e-5)
    attachment.detach()
    assert same(bits(model), bits(original.float()))


def test_recurrent_layers():
    """They read their weights from a list that they keep beside the parameters."""
    torch.manual_seed(0)
    model = nn.LSTM(4, 6)
    x = torch.randn(3, 2, 4)
    base = model(x)[0]
    attachment = pm.attach(model, pm.FullFineTuning())
    model(x)[0].square().sum().backward()
    assert attachment.without_gradient() == []
    torch.optim.SGD(attachment.parameters(), lr=1).step()
    assert not torch.equal(model(x)[0], base)
    with attachment.disabled():
        assert torch.equal(model(x)[0], base)


def test_tied_weights_by_either_name():
    for within in (r"head\..*", r"embed\..*"):
        model, _, attachment = setup(pm.FullFineTuning(within))
        assert dict(attachment.named_parameters()).keys() == {"embed.weight"}
        assert model.head.weight is model.embed.weight is attachment.parameters()[0]


def test_within_and_what_cannot_be():
    _, _, attachment = setup(pm.BitFit(r"blocks\.1\..*"))
    assert [name for name, _ in attachment.named_parameters()] == ["blocks.1.0.bias"]
    with pytest.raises(pm.TargetError, match=r"BitFit\(within='head.*'\): matches no parameter"):
        setup(pm.BitFit("head.*"))
    with pytest.raises(ValueError, match="within='\\('"):
        pm.NormTuning("(")


@pytest.mark.parametrize("kind", ["int8", "subclass"])
def test_quantized_weights_are_refused(kind):
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    packed = torch.zeros(4, 4, dtype=torch.int8)
    if kind == "subclass":  # like bitsandbytes' Params4bit
        packed = torch.zeros(4, 4)
        model[0].weight = types.new_class("Params4bit", (nn.Parameter,))(packed)
    else:
        model[0].weight = nn.Parameter(packed, requires_grad=False)
    with pytest.raises(pm.AdapterError, match=r"0.weight: (int8 Parameter|float32 Params4bit) cannot be trained"):
        pm.attach(model, pm.FullFineTuning())
    assert pm.attachments(model) == [] and model[0].bias.requires_grad
    pm.attach(model, pm.FullFineTuning(within=r"1\..*|0\.bias"))
    assert model[1].weight.requires_grad and not model[0].weight.requires_grad


def test_a_files_missing_parameter(tmp_path):
    model, original, attachment = setup(pm.BitFit())
    attachment.save(tmp_path)
    original.blocks[1][0].bias = None
    with pytest.raises(pm.AdapterError, match=r"'blocks.1.0.bias' \(nearest: blocks.0.0.bias"):
        pm.load(original, tmp_path)
    assert pm.attachments(original) == []
