"""Prefix tuning on torch alone: `nn.MultiheadAttention`, plain transformers, options, files, several at once."""

import copy
import io
import math

import pytest
import torch
from torch import nn

import peft_methods as pm

LENGTH, WIDTH, HEADS, TOKENS = 3, 12, 2, 5


def attention(batch_first=True, **options):
    torch.manual_seed(0)
    module = nn.MultiheadAttention(WIDTH, HEADS, batch_first=batch_first, dtype=torch.float64, **options)
    return nn.ModuleDict({"attention": module}).eval()


def randomize(attachment, scale=0.7):
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in attachment.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * scale)
    return attachment


def attach(model, **options):
    return randomize(pm.attach(model, pm.Prefix(length=LENGTH, targets=["attention"], **options)))


def by_hand(module, q, k, v, prefix, unseen=None):
    """Query by query and head by head; `unseen(row, head, query, key)` says what a mask adds."""
    if module._qkv_same_embed_dim:
        weights = module.in_proj_weight.chunk(3)
    else:
        weights = module.q_proj_weight, module.k_proj_weight, module.v_proj_weight
    biases = [0, 0, 0] if module.in_proj_bias is None else module.in_proj_bias.chunk(3)
    q, k, v = (x @ W.T + b for x, W, b in zip((q, k, v), weights, biases, strict=True))
    d = WIDTH // HEADS
    out, all_weights = torch.zeros_like(q), torch.zeros(len(q), HEADS, q.shape[1], k.shape[1], dtype=q.dtype)
    for row in range(len(q)):
        for head in range(HEADS):
            part = slice(head * d, (head + 1) * d)
            keys = torch.cat([prefix.keys[:, head], k[row, :, part]])
            values = torch.cat([prefix.values[:, head], v[row, :, part]])
            for i in range(q.shape[1]):
                scores = keys @ q[row, i, part] / math.sqrt(d)
                if unseen is not None:
                    scores = scores + torch.tensor(
                        [0.0] * LENGTH + [unseen(row, head, i, j) for j in range(k.shape[1])]
                    )
                share = (scores - scores.max()).exp()
                share = share / share.sum()
                out[row, i, part] = share @ values
                all_weights[row, head, i] = share[LENGTH:]
    return out @ module.out_proj.weight.T + module.out_proj.bias, all_weights


def inputs(queries=TOKENS, keys=TOKENS, kdim=WIDTH, vdim=WIDTH):
    generator = torch.Generator().manual_seed(1)
    sizes = (2, queries, WIDTH), (2, keys, kdim), (2, keys, vdim)
    return [torch.randn(size, generator=generator, dtype=torch.float64) for size in sizes]


CAUSAL = torch.ones(TOKENS, TOKENS, dtype=torch.bool).triu(1)
PADDED = torch.tensor([[True, True, False, False, False], [False, False, False, False, True]])
MINUS = -math.inf
MASKS = {
    "none": ({}, None),
    "causal": ({"attn_mask": CAUSAL}, lambda b, h, i, j: MINUS if CAUSAL[i, j] else 0.0),
    "hint": ({"attn_mask": CAUSAL, "is_causal": True}, lambda b, h, i, j: MINUS if CAUSAL[i, j] else 0.0),
    "padded": ({"key_padding_mask": PADDED}, lambda b, h, i, j: MINUS if PADDED[b, j] else 0.0),
    "both": (
        {"attn_mask": CAUSAL, "key_padding_mask": PADDED},  # a query may see nothing but the prefix
        lambda b, h, i, j: MINUS if CAUSAL[i, j] or PADDED[b, j] else 0.0,
    ),
    "float": (
        {"attn_mask": torch.arange(4.0 * 25).view(4, 5, 5).double().sin()},
        lambda b, h, i, j: math.sin(float((b * HEADS + h) * 25 + i * 5 + j)),
    ),
}


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("mask", MASKS)
def test_multihead_attention_by_hand(mask, batch_first):
    model = attention(batch_first)
    part = attach(model).modules["attention"]
    masks, unseen = MASKS[mask]
    q, k, v = inputs()
    expected, weights = by_hand(model.attention.base, q, k, v, part.prefix, unseen)
    given = [x if batch_first else x.transpose(0, 1) for x in (q, k, v)]
    for options, shape in (
        ({}, weights.mean(1)),
        ({"average_attn_weights": False}, weights),
        ({"need_weights": False}, None),
    ):
        out, returned = model.attention(*given, **masks, **options)
        assert torch.allclose(out if batch_first else out.transpose(0, 1), expected, atol=1e-12)
        assert (returned is None) == (shape is None)
        assert shape is None or torch.allclose(returned, shape, atol=1e-12)


def test_other_widths_no_bias_and_no_batch():
    model = attention(kdim=7, vdim=9, bias=False)
    model.attention.out_proj.bias = nn.Parameter(torch.zeros(WIDTH, dtype=torch.float64))
    part = attach(model).modules["attention"]
    q, k, v = inputs(queries=2, kdim=7, vdim=9)
    expected, weights = by_hand(model.attention.base, q, k, v, part.prefix)
    out, returned = model.attention(q[0], k[0], v[0])
    assert torch.allclose(out, expected[0], atol=1e-12) and torch.allclose(returned, weights[0].mean(0), atol=1e-12)
    padded = torch.tensor([False, True, True, True, True])
    out, _ = model.attention(q[0], k[0], v[0], key_padding_mask=padded)
    again, _ = model.attention(q[0], k[0, :1], v[0, :1])
    assert torch.allclose(out, again, atol=1e-12)


def test_gradients_by_finite_differences():
    model = attention()
    attachment = attach(model, reparameterization=4)
    q, k, v = inputs()
    names = [name for name, _ in attachment.named_parameters()]
    assert names == [
        f"attention.prefix.{name}"
        for name in ("embedding", "inner.weight", "inner.bias", "outer.weight", "outer.bias")
    ]  # fmt: skip

    def forward(*parameters):
        state = {f"attention.{name}": p for name, p in zip(names, parameters, strict=True)}
        arguments = {"attn_mask": CAUSAL, "key_padding_mask": PADDED}
        return torch.func.functional_call(Caller(model), state, (q, k, v), arguments)

    class Caller(nn.Module):
        def __init__(self, attention):
            super().__init__()
            self.attention = attention

        def forward(self, *args, **kwargs):
            return self.attention["attention"](*args, **kwargs)[0]

    assert torch.autograd.gradcheck(forward, [p.detach().requires_grad_() for p in attachment.parameters()])


def test_reparameterization_is_its_formula():
    attachment = attach(attention(), reparameterization=4)
    prefix = attachment.modules["attention"].prefix
    E, W1, b1, W2, b2 = (p.detach() for p in attachment.parameters())
    states = (E @ W1.T + b1).tanh() @ W2.T + b2
    keys, values = prefix()
    assert torch.allclose(keys.flatten(1), states[:, :WIDTH], atol=1e-12)
    assert torch.allclose(values.flatten(1), states[:, WIDTH:], atol=1e-12)
    assert keys.shape == values.shape == (LENGTH, HEADS, WIDTH // HEADS)


def test_dropout_is_kept():
    """With values all one, what attention returns is the sum of the weights that were kept."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(WIDTH, HEADS, dropout=0.5, batch_first=True)})
    attachment = pm.attach(model, pm.Prefix(length=LENGTH, targets=["attention"]))
    x = torch.randn(2, TOKENS, WIDTH)
    for need_weights in (True, False):
        outs = torch.stack([model.attention(x, x, x, need_weights=need_weights)[0] for _ in range(2000)])
        model.eval()
        expected = model.attention(x, x, x)[0]
        model.train()
        assert (outs.std(0) > 0.01).any()
        assert (outs.mean(0) - expected).abs().max() < 0.05
    assert attachment.trainable == 2 * LENGTH * WIDTH


class Model(nn.Module):
    def __init__(self, batch_first=True):
        super().__init__()
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 16, dropout=0.0, batch_first=batch_first)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(WIDTH, 4)

    def forward(self, x, **masks):
        return self.head(self.encoder(x, **masks))


def plain(dtype=torch.float32):
    torch.manual_seed(0)
    return Model().to(dtype).eval(), torch.randn(2, TOKENS, WIDTH).to(dtype)


PLAIN_MASKS = {"none": {}, "padded": {"src_key_padding_mask": PADDED}, "causal": {"mask": CAUSAL, "is_causal": True}}


@pytest.mark.parametrize("mask", PLAIN_MASKS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_base_save_load_copy_and_pickle(dtype, mask, tmp_path):
    """Fused encoder layers included: they are what runs without gradients, and cannot run with a prefix."""
    model, x = plain(dtype)
    masks = PLAIN_MASKS[mask]
    with torch.no_grad():
        expected_base = model(x, **masks)
        attachment = randomize(pm.attach(model, pm.Prefix(length=LENGTH)))
        assert list(attachment.modules) == [f"encoder.layers.{i}.self_attn" for i in range(2)]
        assert all(parameter.dtype == torch.float32 for parameter in attachment.parameters())
        expected = model(x, **masks)
        real = ~PADDED if mask == "padded" else torch.ones(2, TOKENS, dtype=torch.bool)
        assert not torch.allclose(expected[real], expected_base[real], atol=0.05)
        with attachment.disabled():
            assert torch.equal(model(x, **masks), expected_base)
        attachment.save(tmp_path)
        fresh = plain(dtype)[0]
        loaded = pm.load(fresh, tmp_path)
        assert torch.equal(fresh(x, **masks), expected)
        stream = io.BytesIO()
        torch.save(copy.deepcopy(model), stream)
        randomize(attachment, 0.1)
        stream.seek(0)
        assert torch.equal(torch.load(stream, weights_only=False)(x, **masks), expected)
        attachment.detach()
        assert torch.equal(model(x, **masks), expected_base)
    loaded.model(x, **masks).float().sum().backward()
    assert not loaded.without_gradient()
    with pytest.raises(pm.AdapterError, match="no weights to merge"):
        loaded.merge()


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_two_prefixes_are_one_of_both(order):
    """The later one in front; detached in either order, and in company of LoRA in the same layers."""
    model, x = plain()
    lora = randomize(pm.attach(model, pm.LoRA(rank=2, targets=["linear1"])), 0.2)
    base = model(x)
    both = [randomize(pm.attach(model, pm.Prefix(length=n)), 0.5 + n) for n in (1, 2)]
    whole = copy.deepcopy(model)
    for attachment in reversed(pm.attachments(whole)[1:]):
        attachment.detach()
    union = pm.attach(whole, pm.Prefix(length=3))
    with torch.no_grad():
        for name, part in union.modules.items():
            first, second = (a.modules[name].prefix for a in both)
            part.prefix.keys.copy_(torch.cat([first.keys, second.keys]))
            part.prefix.values.copy_(torch.cat([first.values, second.values]))
    assert torch.allclose(model(x), whole(x), atol=1e-5)
    for n in order:
        both[n].detach()
    assert torch.equal(model(x), base)
    lora.detach()


def test_what_is_found_in_a_transformer_with_a_decoder():
    model = nn.Transformer(WIDTH, HEADS, 1, 1, 16, dropout=0.0, batch_first=True)
    attachment = pm.attach(model, pm.Prefix())
    assert list(attachment.modules) == ["decoder.layers.0.self_attn"]
    attachment.detach()
    assert list(pm.attach(model, pm.Prefix(targets=["multihead_attn"])).modules) == ["decoder.layers.0.multihead_attn"]


def test_initialization_from_activations():
    """Keys and values of the first real tokens, which an encoder then sees twice over."""
    model, x = plain()
    attachment = pm.attach(model, pm.Prefix(length=LENGTH))
    model.train()
    for dropout in (module for module in model.modules() if isinstance(module, nn.Dropout)):
        dropout.p = 0.5
    pm.initialize_prefix(attachment, x, src_key_padding_mask=PADDED)
    assert model.training and model.encoder.layers[0].self_attn.base.training
    model.eval()
    first = attachment.modules["encoder.layers.0.self_attn"]
    module = first.base
    k, v = (
        x[0, 2:] @ W.T + b  # the first two tokens are padding
        for W, b in zip(module.in_proj_weight.chunk(3)[1:], module.in_proj_bias.chunk(3)[1:], strict=True)
    )
    assert torch.allclose(first.prefix.keys.flatten(1), k, atol=1e-5)
    assert torch.allclose(first.prefix.values.flatten(1), v, atol=1e-5)
    with attachment.disabled():
        hidden = model.encoder.layers[0](x, src_key_padding_mask=PADDED)
    second = attachment.modules["encoder.layers.1.self_attn"]
    values = hidden[0, 2:] @ second.in_proj_weight.chunk(3)[2].T + second.in_proj_bias.chunk(3)[2]
    assert torch.allclose(second.prefix.values.flatten(1), values, atol=1e-5)


def test_initialization_refuses():
    model, x = plain()
    attachment = pm.attach(model, pm.Prefix(length=4))
    before = {name: tensor.clone() for name, tensor in attachment.state_dict().items()}
    with pytest.raises(pm.AdapterError, match=r"layers.0.self_attn: 3 real tokens at most, and length=4"):
        pm.initialize_prefix(attachment, x[:1], src_key_padding_mask=PADDED[:1])
    assert all(torch.equal(tensor, before[name]) for name, tensor in attachment.state_dict().items())
    pm.initialize_prefix(attachment, run=lambda: model(x, src_key_padding_mask=PADDED))  # the second row has four
    assert not torch.equal(attachment.parameters()[0], next(iter(before.values())))
    with pytest.raises(pm.AdapterError, match="not a prefix"):
        pm.initialize_prefix(pm.attach(plain()[0], pm.LoRA()), x)
    other = pm.attach(plain()[0], pm.Prefix(reparameterization=4))
    with pytest.raises(pm.AdapterError, match="fold_prefix"):
        pm.initialize_prefix(other, x)


def test_folding_keeps_the_outputs(tmp_path):
    model, x = plain()
    attachment = randomize(pm.attach(model, pm.Prefix(length=LENGTH, reparameterization=5)))
    attachment.save(tmp_path / "with")
    expected = model(x)
    assert torch.equal(pm.load(plain()[0], tmp_path / "with").model(x), expected)
    pm.fold_prefix(attachment)
    assert attachment.method == pm.Prefix(length=LENGTH)
    assert {*attachment.state_dict()} == {
        f"encoder.layers.{i}.self_attn.prefix.{kind}" for i in range(2) for kind in ("keys", "values")
    }
    assert torch.equal(model(x), expected)
    attachment.save(tmp_path / "folded")
    loaded = pm.load(plain()[0], tmp_path / "folded")
    assert torch.equal(loaded.model(x), expected)


def test_compiled_forward():
    model, x = plain()
    attachment = randomize(pm.attach(model, pm.Prefix(length=LENGTH)))
    assert torch.allclose(torch.compile(model, backend="aot_eager")(x), model(x), atol=1e-5)
    assert attachment.active
    torch._dynamo.reset()


@pytest.mark.parametrize(
    "options",
    [
        {"length": 0},
        {"length": 1.5},
        {"reparameterization": 0},
        {"targets": []},
        {"targets": "q_proj"},
        {"within": "("},
    ],
)
def test_options_that_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        pm.Prefix(**options)


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (nn.Linear(2, 2), {}, "finds no causal self-attention in Linear"),
        (Model(), {"targets": ["linear1"]}, "matches 'encoder.layers.0.linear1', a Linear: .*"),
        (Model(), {"targets": ["self_atn"]}, "matches no module; nearest: self_attn"),
        (Model(), {"targets": ["encoder"]}, "only a transformers attention module"),
        (Model(), {"within": "decoder.*"}, "within='decoder.*': matches none of encoder.layers.0.self_attn"),
        (Model(), {"shift_positions": True}, "shift_positions: Model has none of embed_positions"),
        (attention(add_bias_kv=True), {"targets": ["attention"]}, "without bias_k"),
        (attention(add_zero_attn=True), {"targets": ["attention"]}, "add_zero_attn"),
    ],
)
def test_targets_that_are_refused(model, options, message):
    with pytest.raises(pm.TargetError, match=message):
        pm.attach(model, pm.Prefix(**options))
    assert not pm.attachments(model)


def test_a_causal_hint_without_a_mask_is_refused():
    model = attention()
    attach(model)
    with pytest.raises(pm.AdapterError, match="attention: is_causal=True is only a hint"):
        model.attention(*inputs(), is_causal=True, need_weights=False)
