"""Packed rows and the head in parts give the plain path's losses and gradients, with every method on every family."""

from collections.abc import Callable

import pytest
import torch
from subjects import METHODS, Subject, move
from torch import Tensor
from torch._dynamo.backends.debugging import aot_eager
from torch.nn.attention import flex_attention
from transformers import AttentionInterface

import peft_methods as pm
import vlm_data
import vlm_models
from vlm_models import block_attention, linear


def rows_of(counts: list[int]) -> list[dict]:
    """Rows of scenes: so many of a first image, so many of a second, …"""
    rows = vlm_data.open("scenes", split="test", seed=0).select(range(400)).to_list()
    by_image: dict[bytes, list[dict]] = {}
    for row in rows:
        by_image.setdefault(row["image"]["bytes"], []).append(row)
    groups = sorted(by_image.values(), key=len, reverse=True)
    return [row for group, count in zip(groups, counts, strict=False) for row in group[:count]]


class DoubleSubject(Subject):
    """A tiny model in float64, and ragged rows: five of an image, of which two have the same prompt and other answers,
    and, where they fit beside each other, two and one of others."""

    def __init__(self, name: str, padding_side: str):
        super().__init__(name, "float64")
        collate = vlm_data.collator(self.vlm.processor, self.vlm.family, padding_side=padding_side)
        rows = rows_of([4, 2, 1])
        self.batch = collate([*rows, {**rows[0], "references": ["a red one"]}])


def gradients(subject: Subject, attachment: pm.Attachment, packs: bool) -> tuple[Tensor, dict[str, Tensor]]:
    """Of the fast path, or of all rows in full, without packing and with the whole of the last layer."""
    vlm, batch = subject.vlm, subject.batch
    loss, _ = vlm(batch) if packs else vlm.loss(vlm.hidden_states(vlm.encode_images(batch), batch), batch)
    loss.backward()
    found = {name: parameter.grad for name, parameter in attachment.named_parameters() if parameter.grad is not None}
    for parameter in attachment.parameters():
        parameter.grad = None
    return loss.detach(), found


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", vlm_models.TINY)
def test_packed_rows_have_the_gradients_of_rows(name, method):
    subject = DoubleSubject(name, "left" if method in ("lora", "prefix") else "right")
    attachment = pm.attach(subject.model, METHODS[method](subject))
    torch.manual_seed(0)
    move(attachment.parameters())
    plain, expected = gradients(subject, attachment, packs=False)
    calls = []
    handle = subject.vlm.head.register_forward_pre_hook(lambda head, args: calls.append(len(args[0])))
    loss, found = gradients(subject, attachment, packs=True)
    handle.remove()
    torch.testing.assert_close(loss, plain, rtol=1e-11, atol=0)
    assert found.keys() == expected.keys() and calls == [(subject.batch["labels"][:, 1:] != -100).sum()]
    for parameter, gradient in expected.items():
        torch.testing.assert_close(found[parameter], gradient, rtol=1e-9, atol=1e-11, msg=parameter)


@pytest.mark.parametrize("name", vlm_models.TINY)
def test_packing_spares_tokens_and_is_left_out_where_it_would_not(name):
    vlm = vlm_models.load(name, device="cpu")
    collate = vlm_data.collator(vlm.processor, vlm.family)

    def packing(counts):
        batch = collate(rows_of(counts))
        return batch, vlm.packing(vlm.encode_images(batch), batch)

    assert packing([1, 1, 1])[1] is None
    batch, found = packing([6])
    assert found.tokens.numel() < 0.7 * batch["input_ids"].numel() or vlm.family in ("git", "encoder_decoder")
    assert len(found.tokens) == 1 and found.image_index.tolist() == [0] and found.padding == 0.0
    beside = vlm.family in ("git", "encoder_decoder")  # an image's tokens stand beside those of its rows
    batch, found = packing([5, 2, 1])
    assert (len(found.tokens) < 3) != beside and sorted(found.image_index.tolist()) == [0, 1, 2]
    alone = (found.ends == torch.arange(1, found.ends.shape[1] + 1)).flip(1).cumprod(1).sum()  # at the rows' ends
    assert 0.0 <= found.padding < (alone + 1) / found.tokens.numel()
    assert beside or found.padding < batch["padding"] + 0.02
    if name == "tiny-vit-gpt2":  # each image's row would be padded to the longest
        assert packing([4, 1, 1, 1, 1, 1])[1] is None


@pytest.mark.parametrize("method", ["lora", "prefix"])
@pytest.mark.parametrize("name", ["tiny-blip2", "tiny-qwen2-vl"])
def test_images_of_one_packed_row_are_never_seen_across(name, method):
    """The loss of an image's rows has no gradient in another image, and does not change with it."""
    subject = DoubleSubject(name, "right")
    vlm, batch = subject.vlm, subject.batch
    move(pm.attach(subject.model, METHODS[method](subject)).parameters())
    features = [one.detach().requires_grad_() for one in vlm.encode_images(batch)]
    assert len(vlm.packing(features, batch).tokens) < 3
    for image in range(3):
        others = batch["image_index"] != image
        labels = batch["labels"].masked_fill(others[:, None], -100)
        loss, _ = vlm({**batch, "labels": labels, "features": features})
        gradients = torch.autograd.grad(loss, features, materialize_grads=True)
        assert [bool((gradient == 0).all()) for gradient in gradients] == [other != image for other in range(3)]
        noise = [one if number == image else torch.randn_like(one) for number, one in enumerate(features)]
        assert vlm({**batch, "labels": labels, "features": noise})[0].item() == pytest.approx(loss.item(), rel=1e-12)


@pytest.mark.parametrize("name", vlm_models.TINY)
def test_packed_rows_under_gradient_checkpointing_and_in_bfloat16(name):
    subject = DoubleSubject(name, "right")
    attachment = pm.attach(subject.model, METHODS["lora"](subject))
    move(attachment.parameters())
    subject.vlm.train()
    for module in subject.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    plain, expected = gradients(subject, attachment, packs=False)
    subject.model.gradient_checkpointing_enable()
    loss, found = gradients(subject, attachment, packs=True)
    torch.testing.assert_close(loss, plain, rtol=1e-11, atol=0)
    for parameter, gradient in expected.items():
        torch.testing.assert_close(found[parameter], gradient, rtol=1e-9, atol=1e-11, msg=parameter)
    subject.model.gradient_checkpointing_disable()
    subject.model.to(torch.bfloat16)
    subject.batch["pixel_values"] = subject.batch["pixel_values"].bfloat16()
    losses = [gradients(subject, attachment, packs)[0] for packs in (False, True)]
    torch.testing.assert_close(*losses, rtol=0.05, atol=0.05)


@pytest.fixture
def by_blocks(monkeypatch) -> list[tuple[int, ...]]:
    """FlexAttention for short rows and on the CPU, where it is many operations and torch refuses to go backward."""
    taken, mapping = [], dict(AttentionInterface._global_mapping)

    def flex(query: Tensor, *args, **kwargs) -> Tensor:
        taken.append(query.shape)
        return flex_attention.flex_attention(query, *args, **kwargs)

    monkeypatch.setattr(flex_attention, "_validate_device", lambda *tensors: None)
    monkeypatch.setattr(block_attention, "DEVICES", ("cpu",))
    monkeypatch.setattr(block_attention, "LONG", 0)
    monkeypatch.setattr(block_attention, "_flex", lambda: flex)
    monkeypatch.setattr(AttentionInterface, "_global_mapping", mapping)
    block_attention._agrees.cache_clear()
    yield taken
    block_attention._agrees.cache_clear()


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize(
    "name, method",
    [("tiny-blip2", "lora"), ("tiny-blip2", "full"), ("tiny-vit-gpt2", "lora"), ("tiny-qwen2-vl", "lora")]
    + [("tiny-qwen2-vl", "dora"), ("tiny-qwen2-vl", "prefix"), ("tiny-qwen2-vl", "parallel")],
)
def test_packed_rows_by_flex_attention_have_the_gradients_of_rows(name, method, by_blocks):
    subject = DoubleSubject(name, "right")
    attachment = pm.attach(subject.model, METHODS[method](subject))
    torch.manual_seed(0)
    move(attachment.parameters())
    plain, expected = gradients(subject, attachment, packs=False)
    assert not by_blocks
    for checkpointing in (False, True):
        if checkpointing:
            subject.model.gradient_checkpointing_enable()
            subject.vlm.train()
        loss, found = gradients(subject, attachment, packs=True)
        torch.testing.assert_close(loss, plain, rtol=1e-11, atol=0)
        for parameter, gradient in expected.items():
            torch.testing.assert_close(found[parameter], gradient, rtol=1e-9, atol=1e-11, msg=parameter)
    # One trial, and each layer three times, checkpointed once more; a prefix makes a mask of its own, without blocks.
    layers = subject.model.config.get_text_config().num_hidden_layers
    assert len(by_blocks) == (0 if method == "prefix" else 1 + 3 * layers)


def without_kernel(*args, **kwargs) -> Tensor:
    raise RuntimeError("no Triton here\nmore of it")


def without_mask(query: Tensor, key: Tensor, value: Tensor, **kwargs) -> Tensor:
    return torch.nn.functional.scaled_dot_product_attention(query, key, value, enable_gqa=True)


@pytest.mark.parametrize(
    "flex, why", [(without_kernel, "RuntimeError: no Triton here"), (without_mask, "are apart by")]
)
def test_where_flex_attention_fails_its_trial_there_is_a_warning_and_the_mask(flex, why, by_blocks, monkeypatch):
    subject = DoubleSubject("tiny-qwen2-vl", "right")
    expected, _ = subject.vlm.loss(
        subject.vlm.hidden_states(subject.vlm.encode_images(subject.batch), subject.batch), subject.batch
    )
    monkeypatch.setattr(block_attention, "_flex", lambda: flex)
    with pytest.warns(UserWarning, match="attention is computed with a mask: FlexAttention does not work here") as told:
        losses = [subject.vlm(subject.batch)[0] for _ in range(2)]
    assert len(told) == 1 and why in str(told[0].message) and "more of it" not in str(told[0].message)
    torch.testing.assert_close(losses, [expected] * 2, rtol=1e-11, atol=0)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", vlm_models.TINY)
def test_under_autocast_adapters_stay_in_float32(name, half):
    subject = Subject(name, "float32")
    attachment = pm.attach(subject.model, METHODS["lora"](subject))
    move(attachment.parameters())
    expected, gradients_expected = gradients(subject, attachment, packs=True)
    with torch.autocast("cpu", half):
        loss, found = gradients(subject, attachment, packs=True)
    torch.testing.assert_close(loss, expected, rtol=0.03, atol=0.1)
    assert loss.dtype == torch.float32 and found.keys() == gradients_expected.keys()
    for parameter, gradient in gradients_expected.items():
        assert found[parameter].dtype == torch.float32 and found[parameter].isfinite().all()
        similarity = torch.cosine_similarity(found[parameter].flatten(), gradient.flatten(), dim=0)
        assert similarity > 0.9 or gradient.abs().max() < 1e-3, parameter


@pytest.mark.parametrize("name", ["tiny-git", "tiny-qwen2-vl"])
def test_compiled_it_gives_the_same_gradients(name):
    """By the tracing half of torch.compile; the code that its other half writes is torch's concern."""
    subject = Subject(name, "float32")
    attachment = pm.attach(subject.model, METHODS["lora"](subject))
    move(attachment.parameters())
    expected, gradients_expected = gradients(subject, attachment, packs=True)
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: list) -> Callable:
        graphs.append(graph)
        return aot_eager(graph, inputs)

    subject.vlm.compile(backend=backend)
    loss, found = gradients(subject, attachment, packs=True)
    assert sum(len(graph.graph.nodes) for graph in graphs) > 500
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    for parameter, gradient in gradients_expected.items():
        torch.testing.assert_close(found[parameter], gradient, rtol=1e-3, atol=1e-4, msg=parameter)


@pytest.mark.parametrize("method", ["lora", "grit", "houlsby"])
@pytest.mark.parametrize("name", vlm_models.TINY)
def test_products_by_onednn_have_the_gradients_of_torch(name, method, monkeypatch):
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this torch has no oneDNN")
    subject = Subject(name, "float32")
    attachment = pm.attach(subject.model, METHODS[method](subject))
    torch.manual_seed(0)
    move(attachment.parameters())
    monkeypatch.setattr(linear, "_ONEDNN_IS_FASTER", False)
    loss, expected = gradients(subject, attachment, packs=True)
    rows, filled_up = [], linear._filled_up
    monkeypatch.setattr(linear, "_ONEDNN_IS_FASTER", True)
    monkeypatch.setattr(linear, "SMALLEST", 0)
    monkeypatch.setattr(linear, "_filled_up", lambda x: rows.append(len(x)) or filled_up(x))
    fast, found = gradients(subject, attachment, packs=True)
    # Forward and backward, with LoRA in the layers' place or beside them.
    assert len(rows) >= 2 * len(subject.linear) - 2
    torch.testing.assert_close(fast, loss, rtol=1e-5, atol=0)
    for parameter, gradient in expected.items():
        scale = gradient.abs().max().item()
        torch.testing.assert_close(found[parameter], gradient, rtol=1e-3, atol=1e-4 * scale, msg=parameter)
