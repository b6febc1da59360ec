"""Freezing, the trainable set, merge, disable, detach: each against a copy of the untouched model."""

import copy

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import peft_methods as pm

DTYPES = [torch.float32, torch.bfloat16, torch.float64]


class Model(nn.Module):
    """Parameters of its own at the root (as BLIP-2's query_tokens), a frozen one, a buffer, nested linear layers."""

    def __init__(self):
        super().__init__()
        self.query_tokens = nn.Parameter(torch.randn(1, 8))
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)) for _ in range(2)])
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 5)
        self.norm.bias.requires_grad_(False)

    def forward(self, x):
        x = x + self.query_tokens
        for block in self.blocks:
            x = x + block(x)
        return self.head(self.norm(x))


def setup(dtype=torch.float32, **options):
    torch.manual_seed(0)
    model = Model().to(dtype)
    original = copy.deepcopy(model)
    attachment = pm.attach(model, pm.LoRA(**{"rank": 4, **options}))
    return model, original, attachment, torch.randn(3, 7, 8, dtype=dtype)


def train(attachment):
    """Stands for training: adapters that do something."""
    for parameter in attachment.parameters():
        nn.init.normal_(parameter, std=0.5)


def bits(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("dtype", DTYPES)
def test_starts_at_the_base_model(dtype):
    model, original, _, x = setup(dtype)
    assert torch.equal(model(x), original(x))


def test_initialisation():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1000, 50))
    module = pm.attach(model, pm.LoRA(rank=64)).modules["0"]
    assert module.lora_B.eq(0).all()
    bound = 1000**-0.5  # kaiming-uniform with a = √5
    assert 0.99 * bound < module.lora_A.abs().max() <= bound
    assert abs(module.lora_A.std().item() - bound / 3**0.5) < 0.01 * bound


@pytest.mark.parametrize(
    ("base", "adapter"),
    [(torch.bfloat16, torch.float32), (torch.float16, torch.float32), (torch.float64, torch.float64)],
)
def test_adapter_dtype(base, adapter):
    _, _, attachment, _ = setup(base)
    assert {p.dtype for p in attachment.parameters()} == {adapter}


@pytest.mark.parametrize("dtype", DTYPES)
def test_trainable_is_saved_and_all_else_is_frozen(dtype, tmp_path):
    model, original, attachment, x = setup(dtype, targets=["blocks.0.0", "head"])
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trainable == {f"{m}.lora_{k}" for m in ("blocks.0.0", "head") for k in "AB"}
    assert trainable == attachment.state_dict().keys() == dict(attachment.named_parameters()).keys()
    attachment.save(tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert saved.keys() == {f"base_model.model.{name}.weight" for name in trainable}
    optimizer = torch.optim.AdamW(attachment.parameters(), lr=0.1)
    attachment.bind(optimizer)
    for _ in range(3):
        model(x).square().mean().backward()
        optimizer.step()
    assert not torch.equal(model(x), original(x))
    attachment.detach()
    assert same(bits(model), bits(original))


def test_numbers_and_summary(tmp_path):
    model, original, attachment, _ = setup(targets=r"re:blocks\.\d\.[02]")
    base = sum(p.numel() for p in original.parameters())
    assert attachment.trainable == 2 * 2 * 4 * (8 + 16)
    assert attachment.total == base + attachment.trainable == sum(p.numel() for p in model.parameters())
    attachment.merge()
    assert attachment.total == base + attachment.trainable
    attachment.save(tmp_path)
    size = (tmp_path / "adapter_model.safetensors").stat().st_size
    assert attachment.nbytes < size < attachment.nbytes + 200 * 8 + 100
    text = attachment.summary()
    assert "384 of" in text and f"{attachment.total:,}" in text and "4 x blocks.*.*" in text and "1.5 kB" in text


@pytest.mark.parametrize("dtype", DTYPES)
def test_disabled_is_the_base_model(dtype):
    model, original, attachment, x = setup(dtype)
    train(attachment)
    active = model(x)
    for merged in (False, True):
        if merged:
            attachment.merge()
        with attachment.disabled():
            assert torch.equal(model(x), original(x))
            with attachment.disabled():
                assert torch.equal(model(x), original(x))
            assert torch.equal(model(x), original(x))
        assert attachment.merged is merged and not torch.equal(model(x), original(x))
    attachment.unmerge()
    assert torch.equal(model(x), active)
    with pytest.raises(RuntimeError, match="stop"), attachment.disabled():
        raise RuntimeError("stop")
    assert torch.equal(model(x), active)


@pytest.mark.parametrize("dtype", DTYPES)
def test_merge_and_unmerge(dtype):
    model, _, attachment, x = setup(dtype)
    train(attachment)
    before, expected = bits(model), model(x)
    attachment.merge()
    attachment.merge()  # once is enough
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 5e-2}[dtype]
    assert (model(x) - expected).norm() <= tolerance * expected.norm()
    attachment.unmerge()
    attachment.unmerge()
    assert same(bits(model), before) and torch.equal(model(x), expected)


def test_merged_weight_is_the_formula():
    model, original, attachment, _ = setup(torch.float64, alpha=6, targets=["head"])
    train(attachment)
    module = attachment.modules["head"]
    expected = original.head.weight + 6 / 4 * module.lora_B @ module.lora_A
    attachment.merge()
    torch.testing.assert_close(model.head.weight, expected, rtol=1e-14, atol=1e-14)


def test_merging_a_tied_weight_leaves_its_partner():
    model = nn.ModuleDict({"embed": nn.Embedding(6, 4), "out": nn.Linear(4, 6, bias=False)})
    model["out"].weight = model["embed"].weight
    attachment = pm.attach(model, pm.LoRA(targets=["out"]))
    train(attachment)
    embedding = model["embed"].weight.clone()
    attachment.merge()
    assert torch.equal(model["embed"].weight, embedding) and not torch.equal(model["out"].weight, embedding)
    attachment.detach()
    assert model["out"].weight is model["embed"].weight


@pytest.mark.parametrize("merged", [False, True])
def test_detach_restores_everything(merged):
    torch.manual_seed(0)
    model = Model()
    modules, flags = dict(model.named_modules()), {n: p.requires_grad for n, p in model.named_parameters()}
    before = bits(model)
    attachment = pm.attach(model, pm.LoRA())
    train(attachment)
    if merged:
        attachment.merge()
    attachment.detach()
    assert dict(model.named_modules()) == modules and same(bits(model), before)
    assert {n: p.requires_grad for n, p in model.named_parameters()} == flags
    for use in (attachment.merge, attachment.detach):
        with pytest.raises(pm.AdapterError, match="detached"):
            use()
    pm.attach(model, pm.LoRA())


def test_detach_can_keep_the_merged_weights():
    model, original, attachment, x = setup()
    train(attachment)
    expected = model(x)
    attachment.merge()
    attachment.detach(keep_merged=True)
    assert bits(model).keys() == bits(original).keys()
    assert {n: p.requires_grad for n, p in model.named_parameters()} == {
        n: p.requires_grad for n, p in original.named_parameters()
    }
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4)


def test_state_dict_round_trip():
    model, _, attachment, x = setup()
    train(attachment)
    state, expected = {k: v.clone() for k, v in attachment.state_dict().items()}, model(x)
    train(attachment)
    assert not torch.equal(model(x), expected)
    attachment.merge()
    attachment.load_state_dict(state)
    assert attachment.merged
    attachment.unmerge()
    assert torch.equal(model(x), expected)
    name = next(iter(state))
    for bad, message in (
        ({**state, "blocks.9.0.lora_A": state[name]}, "blocks.9.0.lora_A"),
        ({k: v for k, v in state.items() if k != name}, f"missing: '{name}'"),
        ({**state, name: torch.zeros(1, 1)}, f"{name}: shape"),
    ):
        with pytest.raises(pm.AdapterError, match=message):
            attachment.load_state_dict(bad)
        assert torch.equal(model(x), expected)
    attachment.load_state_dict({name: torch.zeros_like(state[name])}, strict=False)
    assert not torch.equal(model(x), expected)


def test_attached_in_eval_mode_stays_in_eval_mode():
    model = Model().eval()
    attachment = pm.attach(model, pm.LoRA(dropout=0.9))
    train(attachment)
    x = torch.randn(4, 8)
    assert torch.equal(model(x), model(x))
    model.train()
    assert not torch.equal(model(x), model(x))


def test_hooks_on_the_base_layer_still_fire():
    model = Model()
    seen = []
    model.head.register_forward_hook(lambda module, args, output: seen.append(output))
    attachment = pm.attach(model, pm.LoRA())
    train(attachment)
    x = torch.randn(2, 8)
    expected = model(x)
    assert len(seen) == 1 and seen[0].shape == (2, 5)
    model.head.base._forward_hooks.clear()
    torch.testing.assert_close(model(x), expected)


def test_models_can_read_a_wrapped_layer():
    model, original, _, _ = setup(torch.bfloat16)
    assert model.head.weight.dtype == torch.bfloat16 and torch.equal(model.head.bias, original.head.bias)
    assert (model.head.in_features, model.head.out_features) == (8, 5)


@pytest.mark.parametrize("mask", [False, True])
def test_fused_transformer_encoder(mask):
    """In eval mode torch's encoder would compute from the weights alone, past the wrappers."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
    model = nn.TransformerEncoder(layer, 2).eval()
    x = torch.randn(2, 5, 16)
    padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2]) if mask else None
    keep = slice(None) if not mask else ~padding
    with torch.no_grad():
        base = model(x, src_key_padding_mask=padding)
        attachment = pm.attach(model, pm.LoRA(targets=["layers.1.linear1", "layers.1.linear2"]))
        train(attachment)
        result = model(x, src_key_padding_mask=padding)
    with torch.enable_grad():
        expected = model.train()(x, src_key_padding_mask=padding)
    torch.testing.assert_close(result[keep], expected[keep], rtol=1e-4, atol=1e-4)
    model.eval()
    with torch.no_grad(), attachment.disabled():
        assert torch.equal(model(x, src_key_padding_mask=padding), base)
    attachment.detach()
    with torch.no_grad():
        assert torch.equal(model(x, src_key_padding_mask=padding), base)
