"""The forward and its gradients against torch autograd, the bytes it keeps, dropout, and odd inputs."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import peft_methods as pm
from peft_methods.lora import LoRALinear
from peft_methods.lora.lowrank import _keep_mask, add_low_rank, lora_linear, new_seed

RELATIVE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 3e-2}


def tensors(dtype=torch.float64, adapter=None, rows=(3, 5), sizes=(12, 9, 4)):
    torch.manual_seed(0)
    n_in, n_out, rank = sizes
    x, W, b = torch.randn(*rows, n_in), torch.randn(n_out, n_in) / n_in**0.5, torch.randn(n_out)
    A, B = torch.randn(rank, n_in) / n_in**0.5, torch.randn(n_out, rank)
    adapter = adapter or dtype
    return [t.to(d).requires_grad_() for t, d in zip((x, W, b, A, B), (dtype,) * 3 + (adapter,) * 2, strict=True)]


def plain(x, W, b, A, B, scale, mask=1.0):
    return F.linear(x, W, b) + F.linear(F.linear(x * mask, A), B) * scale


def close(actual, expected, relative):
    assert (actual.double() - expected.double()).norm() <= relative * expected.double().norm()


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradcheck(dropout):
    x, W, b, A, B = tensors()
    options = (0.7, dropout, new_seed() if dropout else None)
    assert torch.autograd.gradcheck(lambda *t: lora_linear(*t, *options), (x, W, b, A, B))
    y = F.linear(x, W).detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda *t: add_low_rank(*t, *options), (y, x, A, B))


@pytest.mark.parametrize(
    ("dtype", "adapter"),
    [(torch.float64, None), (torch.float32, None), (torch.bfloat16, torch.bfloat16), (torch.bfloat16, torch.float32)],
)
def test_output_and_gradients_equal_autograd(dtype, adapter):
    ours = tensors(dtype, adapter)
    oracle = [t.detach().double().requires_grad_() for t in ours]
    y, expected = lora_linear(*ours, 0.7), plain(*oracle, 0.7)
    assert y.dtype == dtype
    close(y, expected, RELATIVE[dtype])
    grad = torch.randn_like(expected).to(dtype)
    for t, got, want in zip(
        ours, torch.autograd.grad(y, ours, grad), torch.autograd.grad(expected, oracle, grad.double()), strict=True
    ):
        assert got.dtype == t.dtype
        close(got, want, RELATIVE[dtype])


@pytest.mark.parametrize("rows", [(), (1,), (7,), (2, 3, 4), (0,), (2, 0)])
@pytest.mark.parametrize("bias", [True, False])
def test_any_leading_shape(rows, bias):
    x, W, b, A, B = tensors(rows=rows)
    b = b if bias else None
    expected = plain(x, W, b, A, B, 0.7)
    for y in (lora_linear(x, W, b, A, B, 0.7), add_low_rank(F.linear(x, W, b), x, A, B, 0.7)):
        torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
        y.sum().backward()
    with torch.no_grad():
        torch.testing.assert_close(lora_linear(x, W, b, A, B, 0.7), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.transpose(0, 1),
        lambda x: x[..., ::2],
        lambda x: x[:1].expand(6, 5, 12),
        lambda x: x.permute(1, 2, 0),
    ],
)
def test_inputs_that_are_not_contiguous(change, bias):
    x = change(tensors(rows=(3, 5))[0])
    _, W, b, A, B = tensors(sizes=(x.shape[-1], 9, 4))
    b = b if bias else None
    want = plain(x, W, b, A, B, 0.7)
    got = lora_linear(x, W, b, A, B, 0.7)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    grad = torch.randn_like(want)
    for a, e in zip(torch.autograd.grad(got, (x, A, B), grad), torch.autograd.grad(want, (x, A, B), grad), strict=True):
        torch.testing.assert_close(a, e, rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(lora_linear(x, W, b, A, B, 0.7), want, rtol=1e-12, atol=1e-12)


def test_wrong_width_is_an_error():
    _, W, b, A, B = tensors()
    with pytest.raises(RuntimeError):
        lora_linear(torch.randn(4, 6, dtype=torch.float64), W, b, A, B, 0.7)


def test_frozen_weight_and_input_get_no_gradient():
    x, W, b, A, B = (t.detach() for t in tensors())
    lora_linear(x, W, b, A.requires_grad_(), B.requires_grad_(), 0.7).sum().backward()
    assert A.grad is not None and B.grad is not None and x.grad is W.grad is b.grad is None


def test_second_derivative_is_refused():
    x, W, b, A, B = tensors()
    (gradient,) = torch.autograd.grad(lora_linear(x, W, b, A, B, 0.7).pow(2).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_model_may_go_on_in_place():
    x, W, b, A, B = tensors()
    F.relu_(lora_linear(x, W, b, A, B, 0.7)).sum().backward()
    got = x.grad.clone()
    x.grad = None
    F.relu(plain(x, W, b, A, B, 0.7)).sum().backward()
    torch.testing.assert_close(got, x.grad, rtol=1e-12, atol=1e-12)


def attached(dtype=torch.float32, size=1024, **options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(size, size)).to(dtype)
    attachment = pm.attach(model, pm.LoRA(rank=16, **options))
    for parameter in attachment.parameters():
        nn.init.normal_(parameter, std=0.1)
    return model, attachment


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
def test_bytes_kept_for_backward(dtype, dropout, autocast):
    model, attachment = attached(dtype, dropout=dropout)
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    x = torch.randn(4, 128, 1024, dtype=dtype, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t), torch.autocast("cpu", enabled=autocast):
        y = model(x)
    assert all(p.dtype == torch.float32 for p in attachment.parameters())
    assert x.nbytes < sum(kept.values()) <= 1.05 * x.nbytes
    y.float().sum().backward()
    assert x.grad.dtype == dtype


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_autocast_computes_in_its_dtype(dropout):
    model, attachment = attached(torch.float32, 64, dropout=dropout)
    half = copy.deepcopy(model).bfloat16()
    x = torch.randn(5, 64, requires_grad=True)
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16):
        y = model(x)
    torch.manual_seed(1)
    reference = half(x.bfloat16())
    assert y.dtype == torch.bfloat16 and torch.equal(y, reference)
    y.float().pow(2).sum().backward()
    reference.float().pow(2).sum().backward()
    assert x.grad.dtype == torch.float32
    for ours, theirs in zip(attachment.parameters(), (half[0].lora_A, half[0].lora_B), strict=True):
        close(ours.grad, theirs.grad, 1e-2)


def mask_of(module: LoRALinear, x, seed):
    """The scaled mask, read off an identity: with W = 0, A = B = I and s = 1 the output is mask / (1 - p) times x."""
    eye = torch.eye(x.shape[-1], dtype=x.dtype)
    return lora_linear(torch.ones_like(x), torch.zeros_like(eye), None, eye, eye, 1.0, module.dropout, seed)


def test_dropout_gradient_is_exact_given_the_mask():
    model, attachment = attached(torch.float64, 32, dropout=0.25)
    module = model[0]
    x = torch.randn(6, 32, dtype=torch.float64, requires_grad=True)
    torch.manual_seed(3)
    y = model(x)
    torch.manual_seed(3)
    mask = mask_of(module, x.detach(), new_seed()).detach()
    assert set(mask.unique().tolist()) == {0.0, 1 / 0.75}
    expected = plain(x, module.weight, module.bias, module.lora_A, module.lora_B, module.scale, mask)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    inputs, grad = (x, *attachment.parameters()), torch.randn_like(y)
    for got, want in zip(
        torch.autograd.grad(y, inputs, grad), torch.autograd.grad(expected, inputs, grad), strict=True
    ):
        torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("dropout", [0.02, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_statistics(dropout, dtype):
    torch.manual_seed(0)
    n = 1_000_000
    mask = _keep_mask(torch.empty(1000, n // 1000, dtype=dtype), dropout, new_seed()).double()
    bound = 5 * (dropout * (1 - dropout) / n) ** 0.5 + 2**-16
    assert abs(1 - mask.mean().item() - dropout) < bound
    for shift in (1, 2, 3, 1000):  # neighbours, along a row and down a column, are independent
        flat = mask.flatten() - mask.mean()
        assert abs((flat[shift:] * flat[:-shift]).mean().item()) < 5 * dropout * (1 - dropout) / n**0.5
    other = _keep_mask(torch.empty(1000, n // 1000, dtype=dtype), dropout, new_seed()).double()
    assert not torch.equal(mask, other)


def test_dropout_is_reproducible_and_off_in_eval():
    model, _ = attached(torch.float32, 64, dropout=0.5)
    x = torch.randn(4, 64)
    outputs = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        outputs.append(model(x))
    assert torch.equal(outputs[0], outputs[1]) and not torch.equal(outputs[0], outputs[2])
    model.eval()
    module = model[0]
    expected = plain(x, module.weight, module.bias, module.lora_A, module.lora_B, module.scale)
    torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("preserve_rng_state", [True, False])
@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradient_checkpointing(reentrant, dropout, preserve_rng_state):
    model, attachment = attached(torch.float64, 48, dropout=dropout)
    x = torch.randn(8, 48, dtype=torch.float64, requires_grad=True)

    def gradients(run, seed):
        torch.manual_seed(seed)
        y = run(x)
        return y, torch.autograd.grad(y.square().sum(), (x, *attachment.parameters()))

    expected = gradients(model, 1)
    options = {"use_reentrant": reentrant, "preserve_rng_state": preserve_rng_state}
    if reentrant:  # this mode only allows .backward()
        x.grad = None
        torch.manual_seed(1)
        y = checkpoint(model, x, **options)
        y.square().sum().backward()
        got = y, (x.grad, *(p.grad for p in attachment.parameters()))
    else:
        got = gradients(lambda x: checkpoint(model, x, **options), 1)
    assert torch.equal(got[0], expected[0])
    if dropout == 0 or preserve_rng_state:
        for a, b in zip(got[1], expected[1], strict=True):
            assert torch.equal(a, b)


def test_no_grad_equals_grad():
    model, _ = attached(torch.float32, 64)
    x = torch.randn(40, 64)
    expected = model(x).detach()
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert torch.equal(model(x), expected)
            torch.testing.assert_close(model(x[:1]), expected[:1], rtol=1e-5, atol=1e-5)


def test_deepcopy_and_pickle():
    model, attachment = attached(torch.float32, 64, dropout=0.1)
    x = torch.randn(3, 64)
    pair = copy.deepcopy((model, attachment))
    for other, handle in (pair, pickle.loads(pickle.dumps((model, attachment)))):
        assert torch.equal(other.eval()(x), model.eval()(x))
        with torch.no_grad():
            handle.parameters()[0].zero_()  # the copy's own, not the original's
        assert not torch.equal(other(x), model(x))
    assert torch.equal(pickle.loads(pickle.dumps(model))(x), model(x))


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_compiled_forward_and_gradients(dropout):
    model, attachment = attached(torch.float32, 32, dropout=dropout)
    x = torch.randn(5, 32, requires_grad=True)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=not dropout)
    torch.manual_seed(2)
    expected = model(x)
    want = torch.autograd.grad(expected.square().sum(), (x, *attachment.parameters()))
    torch.manual_seed(2)
    y = compiled(x)
    got = torch.autograd.grad(y.square().sum(), (x, *attachment.parameters()))
    if not dropout:  # a compiled graph draws other random numbers
        torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-5, atol=1e-5)
