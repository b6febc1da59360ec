"""Bottleneck adapters on plain torch: the formula, where it is applied, and everything an attachment promises."""

import copy
import io
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn
from torch.utils.checkpoint import checkpoint

import peft_methods as pm

PLACEMENTS = ["houlsby", "pfeiffer", "parallel"]
DTYPES = [torch.float32, torch.bfloat16]


class Attention(nn.Module):
    """Returns a tuple, as those of transformers."""

    def __init__(self, width: int):
        super().__init__()
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, hidden_states):
        q, k, v = self.qkv(hidden_states).chunk(3, dim=-1)
        return self.proj(F.scaled_dot_product_attention(q, k, v)), None


class Block(nn.Module):
    def __init__(self, width: int, mlp: bool):
        super().__init__()
        self.attn, self.norm1, self.norm2 = Attention(width), nn.LayerNorm(width), nn.LayerNorm(width)
        if mlp:
            self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        else:
            self.fc1, self.fc2 = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x):
        x = x + self.attn(hidden_states=self.norm1(x))[0]
        h = self.norm2(x)
        return x + (self.mlp(h) if hasattr(self, "mlp") else self.fc2(F.gelu(self.fc1(h))))


class Model(nn.Module):
    """One block with an MLP that is a module, one without; gradient checkpointing as a switch."""

    def __init__(self, width: int = 16):
        super().__init__()
        self.embed, self.head = nn.Embedding(11, width), nn.Linear(width, 5)
        self.blocks = nn.ModuleList([Block(width, True), Block(width, False)])
        self.checkpointing = None

    def forward(self, tokens):
        x = self.embed(tokens)
        for block in self.blocks:
            run = block if self.checkpointing is None else partial(checkpoint, block, **self.checkpointing)
            x = run(x)
        return self.head(x)


TOKENS = torch.tensor([[1, 5, 7, 2, 9, 3], [4, 4, 8, 6, 1, 0]])


def move(attachment, std=0.1):
    """Stands for training: adapters that do something."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in attachment.parameters():
            parameter += std * torch.randn(parameter.shape, generator=generator)


def setup(placement="houlsby", dtype=torch.float32, **options):
    torch.manual_seed(0)
    model = Model().to(dtype)
    original = copy.deepcopy(model)
    attachment = pm.attach(model, pm.Adapter(placement, **{"size": 4, **options}))
    move(attachment)
    return model, original, attachment


def bottleneck(attachment, name, x, activation, scale):
    """The formula, from the saved tensors."""
    down_weight, down_bias, up_weight, up_bias = (
        dict(attachment.named_parameters())[f"{name}.{part}"]
        for part in ("down.weight", "down.bias", "up.weight", "up.bias")
    )
    return scale * (activation(x @ down_weight.T + down_bias) @ up_weight.T + up_bias)


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize(
    ("placement", "activation", "function", "scale"),
    [("houlsby", "swish", F.silu, 1), ("pfeiffer", "relu", F.relu, 0.5), ("parallel", "gelu", F.gelu, 4)],
)
def test_formula_in_torchs_encoder_layer(placement, activation, function, scale, norm_first):
    """The layer's forward by hand, in float64: outputs, and gradients of adapters and input."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(
        16, 2, 32, dropout=0.0, batch_first=True, norm_first=norm_first, dtype=torch.float64)  # fmt: skip
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    original = copy.deepcopy(model)
    options = {} if placement == "parallel" else {"scale": scale}  # 4 by default in parallel
    attachment = pm.attach(model, pm.Adapter(placement, size=3, activation=activation, **options))
    assert all(parameter.dtype == torch.float64 for parameter in attachment.parameters())
    move(attachment)

    def attend(layer, i, x):
        y = layer.self_attn(x, x, x, need_weights=False)[0]
        return y + bottleneck(attachment, f"layers.{i}.self_attn", y, function, scale) if placement == "houlsby" else y

    def feed(layer, i, x):
        y = layer.linear2(F.relu(layer.linear1(x)))
        return y + bottleneck(attachment, f"layers.{i}.linear2", x if placement == "parallel" else y, function, scale)

    def by_hand(x):
        for i, layer in enumerate(original.layers):
            if norm_first:
                x = x + attend(layer, i, layer.norm1(x))
                x = x + feed(layer, i, layer.norm2(x))
            else:
                x = layer.norm1(x + attend(layer, i, x))
                x = layer.norm2(x + feed(layer, i, x))
        return x

    x = torch.randn(3, 5, 16, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, 5, 16, dtype=torch.float64)
    assert len(attachment.modules) == (4 if placement == "houlsby" else 2)
    inputs = [x, *attachment.parameters()]
    expected, actual = by_hand(x), model(x)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    expected = torch.autograd.grad((expected * weight).sum(), inputs)
    actual = torch.autograd.grad((actual * weight).sum(), inputs)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)
    with torch.no_grad():  # torch's fused path in evaluation would go past the adapters
        torch.testing.assert_close(model.eval()(x), by_hand(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_padding_changes_nothing(placement, left):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True, dtype=torch.float64)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    move(pm.attach(model, pm.Adapter(placement, size=3)))
    x = torch.randn(1, 4, 16, dtype=torch.float64)
    filler = torch.randn(1, 3, 16, dtype=torch.float64)
    padded = torch.cat([filler, x] if left else [x, filler], dim=1)
    mask = torch.tensor([[left] * 3 + [False] + [not left] * 3])
    torch.testing.assert_close(model(padded, src_key_padding_mask=mask)[~mask], model(x)[0], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_starts_at_the_base_model(placement, dtype):
    torch.manual_seed(0)
    model = Model().to(dtype)
    expected = model(TOKENS)
    attachment = pm.attach(model, pm.Adapter(placement))
    assert torch.equal(model(TOKENS), expected)
    model(TOKENS).float().logsumexp(-1).mean().backward()
    assert attachment.without_gradient() == []
    assert all(p.grad.any() for name, p in attachment.named_parameters() if name.endswith("up.weight"))
    attachment.detach()
    pm.attach(model, pm.Adapter(placement, initialization="normal"))
    assert not torch.equal(model(TOKENS), expected)
    torch.testing.assert_close(model(TOKENS), expected, rtol=0, atol=0.05)


def test_initialization():
    model = nn.Sequential(nn.Linear(3, 1600), nn.LayerNorm(1600))
    part = pm.attach(model, pm.Adapter("pfeiffer", targets=["0"])).modules["0"]
    assert part.down.weight.shape == (100, 1600) and part.up.weight.shape == (1600, 100)  # reduction 16
    assert not (part.up.weight.any() or part.up.bias.any() or part.down.bias.any())
    assert 0.99 / 40 < part.down.weight.abs().max() <= 1 / 40  # Kaiming-uniform with a = √5: 1 / √width
    part = pm.attach(model, pm.Adapter("pfeiffer", size=7, initialization="normal", targets=["1"])).modules["1"]
    assert part.down.weight.shape == (7, 1600) and part.scale == 1 and not part.up.bias.any()
    for weight in (part.down.weight, part.up.weight):
        assert weight.abs().max() <= 0.02 and abs(weight.std().item() - 0.0088) < 2e-4  # a normal cut at 2 σ: 0.88 σ


def test_sites_of_the_placements():
    model = Model()
    expected = {
        "houlsby": ["blocks.0.attn.proj", "blocks.0.mlp.2", "blocks.1.attn.proj", "blocks.1.fc2"],
        "pfeiffer": ["blocks.0.mlp.2", "blocks.1.fc2"],
        "parallel": ["blocks.0.mlp", "blocks.1.fc2"],
    }
    for placement, names in expected.items():
        attachment = pm.attach(model, pm.Adapter(placement))
        assert list(attachment.modules) == names
        attachment.detach()
        narrowed = pm.attach(model, pm.Adapter(placement, within=r"blocks\.1\..*"))
        assert list(narrowed.modules) == [name for name in names if name.startswith("blocks.1.")]
        narrowed.detach()
    decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(8, 2, 16), 1)
    names = ["layers.0.self_attn", "layers.0.multihead_attn", "layers.0.linear2"]
    assert list(pm.attach(decoder, pm.Adapter("houlsby")).modules) == names
    layer = nn.TransformerEncoderLayer(8, 2, 16)  # by itself
    assert list(pm.attach(layer, pm.Adapter("pfeiffer")).modules) == ["linear2"]


def test_a_block_in_two_places_has_one_adapter():
    torch.manual_seed(0)
    model = Model()
    model.blocks.append(model.blocks[0])
    attachment = pm.attach(model, pm.Adapter("pfeiffer"))
    assert list(attachment.modules) == ["blocks.0.mlp.2", "blocks.1.fc2"]
    assert len(model.blocks[2].mlp[2]._forward_hooks) == 1


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_promises_of_an_attachment(placement, dtype, tmp_path):
    model, original, attachment = setup(placement, dtype)
    base, adapted = original(TOKENS), model(TOKENS)
    assert adapted.dtype == dtype and not torch.equal(base, adapted)
    assert {p.dtype for p in attachment.parameters()} == {torch.float32}
    own = {id(parameter) for parameter in attachment.parameters()}
    assert {id(p) for p in model.parameters() if p.requires_grad} == own
    with attachment.disabled():
        assert torch.equal(model(TOKENS), base)
    assert torch.equal(model(TOKENS), adapted)
    with pytest.raises(pm.AdapterError, match="no weights to merge into"):
        attachment.merge()
    attachment.save(tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert saved.keys() == dict(attachment.named_parameters()).keys()
    other = copy.deepcopy(original)
    loaded = pm.load(other, tmp_path)
    assert loaded.method == attachment.method and torch.equal(other(TOKENS), adapted)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    for twin in (copy.deepcopy(model), torch.load(buffer, weights_only=False)):
        assert torch.equal(twin(TOKENS), adapted)
        (carried,) = pm.attachments(twin)
        carried.detach()
        assert torch.equal(twin(TOKENS), base) and torch.equal(model(TOKENS), adapted)
    attachment.detach()
    assert torch.equal(model(TOKENS), base) and not any(m._forward_hooks for m in model.modules())
    assert not any(m._forward_pre_hooks for m in model.modules())
    assert model.state_dict().keys() == original.state_dict().keys()
    assert all(p.requires_grad for p in model.parameters())


def test_files_that_do_not_fit(tmp_path):
    _, original, attachment = setup("pfeiffer")
    attachment.save(tmp_path)
    model = copy.deepcopy(original)
    model.blocks = model.blocks[1:]
    with pytest.raises(pm.AdapterError, match=r"blocks\.0\.mlp\.2\.down\.bias' \(nearest: blocks\.0\.fc2\.down\.bias"):
        pm.load(model, tmp_path)
    assert pm.attachments(model) == [] and all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_gradient_checkpointing(placement, reentrant):
    model, _, attachment = setup(placement)
    model.embed.register_forward_hook(lambda module, args, output: output.requires_grad_())
    gradients = []
    for model.checkpointing in (None, {"use_reentrant": reentrant}):
        model(TOKENS).logsumexp(-1).mean().backward()
        gradients.append([parameter.grad for parameter in attachment.parameters()])
        for parameter in attachment.parameters():
            parameter.grad = None
    for a, b in zip(*gradients, strict=True):
        assert a.any() and torch.equal(a, b)
    copy.deepcopy(model)  # recomputing stops early and leaves what it will not need any more


def test_a_copy_in_the_middle_of_a_layer():
    """The input that waits for a block's last layer belongs to a graph, which cannot be copied."""
    model, _, _ = setup("parallel")
    model.blocks[1].fc1(torch.randn(2, 16, requires_grad=True) * 2)
    twin = copy.deepcopy(model)
    assert torch.equal(twin(TOKENS), model(TOKENS))


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_autocast(placement):
    model, _, attachment = setup(placement)
    exact = model(TOKENS)
    with torch.autocast("cpu", torch.bfloat16):
        result = model(TOKENS)
    torch.testing.assert_close(result.float(), exact, rtol=0.05, atol=0.05)
    result.float().logsumexp(-1).mean().backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.any() for p in attachment.parameters())


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_compiled(placement):
    torch._dynamo.reset()
    model, _, attachment = setup(placement)
    expected = model(TOKENS)
    expected.logsumexp(-1).mean().backward()
    gradients = [p.grad.clone() for p in attachment.parameters()]
    for parameter in attachment.parameters():
        parameter.grad = None
    compiled = torch.compile(model, backend="aot_eager")
    actual = compiled(TOKENS)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6)
    actual.logsumexp(-1).mean().backward()
    torch.testing.assert_close([p.grad for p in attachment.parameters()], gradients, rtol=1e-5, atol=1e-7)


def test_learns():
    model, _, attachment = setup("houlsby")
    optimizer = torch.optim.Adam(attachment.parameters(), lr=3e-2)
    attachment.bind(optimizer)
    target = torch.tensor([1, 3])
    losses = []
    for _ in range(60):
        loss = F.cross_entropy(model(TOKENS)[:, -1], target)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]
