"""What peft-methods promises, for every method on every family's trained model and on a plain transformer."""

import copy
import functools
import io

import peft
import pytest
import torch
from safetensors.torch import load_file
from subjects import METHODS, Subject, move
from torch import Tensor, nn

import peft_methods as pm
import vlm_models

MODELS = ["plain", *vlm_models.TINY]
DTYPES = {"float32": 2e-4, "bfloat16": 0.05}  # and how far equal computations in another order may be apart
FLOAT32 = pytest.mark.parametrize("dtype", ["float32"])  # where the number format changes nothing

MERGEABLE = {"lora", "rslora", "dora", "grit", "full", "bitfit", "norm"}


@functools.cache
def original(model: str, dtype: str) -> Subject:
    return Subject(model, dtype)


@pytest.fixture(params=MODELS)
def model(request) -> str:
    return request.param


@pytest.fixture(params=list(DTYPES))
def dtype(request) -> str:
    return request.param


@pytest.fixture
def base(model, dtype) -> Subject:
    return original(model, dtype)


@pytest.fixture
def subject(base) -> Subject:
    return base.copy()


@pytest.fixture(params=list(METHODS))
def attachment(request, subject) -> pm.Attachment:
    """The method on the subject's model, moved from where it starts, as training would."""
    torch.manual_seed(1)
    attachment = pm.attach(subject.model, METHODS[request.param](subject))
    move(attachment.parameters())
    attachment.name = request.param
    return attachment


def bits(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_changes_the_logits_and_switched_off_is_the_base(attachment, subject, base):
    with torch.no_grad():
        adapted, expected = subject.logits(), base.logits()
        assert adapted.dtype == expected.dtype and not torch.equal(adapted, expected)
        with attachment.disabled():
            assert torch.equal(subject.logits(), expected)
        assert torch.equal(subject.logits(), adapted)


@FLOAT32
def test_trains_what_it_saves_and_freezes_the_rest(attachment, subject, tmp_path):
    own = {id(parameter) for parameter in attachment.parameters()}
    assert {id(p) for p in subject.model.parameters() if p.requires_grad} == own  # BLIP-2's query_tokens too
    attachment.save(tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert len(saved) == len(own) and sum(map(torch.numel, saved.values())) == attachment.trainable


def test_saved_and_loaded_it_gives_equal_logits_and_trains_on(attachment, subject, base, tmp_path):
    attachment.save(tmp_path)
    other = base.copy()
    loaded = pm.load(other.model, tmp_path)
    assert type(loaded.method) is type(attachment.method)
    with torch.no_grad():
        assert torch.equal(other.logits(), subject.logits())
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    assert other.gradients(loaded).keys() == subject.gradients(attachment).keys() != set()


@FLOAT32
def test_detached_the_model_is_as_before(attachment, subject, base):
    attachment.detach()
    assert same(bits(subject.model), bits(base.model))
    assert [p.requires_grad for p in subject.model.parameters()] == [p.requires_grad for p in base.model.parameters()]
    with torch.no_grad():
        assert torch.equal(subject.logits(), base.logits())


def test_merged_it_gives_the_same_logits_and_unmerged_the_same_bits(attachment, subject, dtype):
    if attachment.name not in MERGEABLE:
        with pytest.raises(pm.AdapterError, match="merge"):
            attachment.merge()
        return
    before = bits(subject.model)
    with torch.no_grad():
        expected = subject.logits()
        attachment.merge()
        scale = expected.abs().max()
        assert (subject.logits() - expected).abs().max() <= DTYPES[dtype] * scale
        attachment.unmerge()
        assert torch.equal(subject.logits(), expected)
    assert same(bits(subject.model), before)


def test_gradients_under_gradient_checkpointing(attachment, subject, dtype):
    if subject.vlm is None:
        pytest.skip("torch's encoder has no gradient checkpointing")
    subject.model.train()  # transformers checkpoints in training mode only; the models' dropout is 0
    expected = subject.gradients(attachment)
    subject.model.gradient_checkpointing_enable()
    checkpointed = subject.gradients(attachment)
    subject.model.gradient_checkpointing_disable()
    for actual in (checkpointed, subject.gradients(attachment)):
        assert actual.keys() == expected.keys()
        for name, gradient in expected.items():
            torch.testing.assert_close(actual[name], gradient, rtol=DTYPES[dtype], atol=1e-6, msg=name)


@FLOAT32
def test_copies_and_pickles(attachment, subject):
    with torch.no_grad():
        expected = subject.logits()
        buffer = io.BytesIO()
        torch.save(subject.model, buffer)
        buffer.seek(0)
        for model in (copy.deepcopy(subject.model), torch.load(buffer, weights_only=False)):
            other = copy.copy(subject)
            other.model = model
            if subject.vlm is not None:
                other.vlm = copy.copy(subject.vlm)
                other.vlm._modules = {"model": model}
            assert torch.equal(other.logits(), expected)
            (twin,) = pm.attachments(model)
            for parameter in twin.parameters():  # the copy's own
                parameter.zero_()
            assert torch.equal(subject.logits(), expected) and not torch.equal(other.logits(), expected)


@FLOAT32
def test_compiled_forward(attachment, subject, dtype):
    torch._dynamo.reset()
    with torch.no_grad():
        expected = subject.logits()
        for layers in [module for module in subject.model.modules() if isinstance(module, nn.ModuleList)]:
            for layer in layers:
                layer.compile(backend="eager")
        actual = subject.logits()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    torch.testing.assert_close(actual, expected, rtol=DTYPES[dtype], atol=DTYPES[dtype])


@pytest.mark.parametrize("name", vlm_models.TINY)
@pytest.mark.parametrize("method", ["lora", "rslora", "dora", "grit"])
def test_files_are_those_of_peft(name, method, tmp_path):
    base = original(name, "float32")
    ours, theirs, again = base.copy(), base.copy(), base.copy()
    attachment = pm.attach(ours.model, METHODS[method](ours))
    move(attachment.parameters())
    attachment.save(tmp_path / "ours")
    adapted = peft.PeftModel.from_pretrained(theirs.model, tmp_path / "ours", is_trainable=True)  # in place
    expected = ours.logits()
    torch.testing.assert_close(theirs.logits(), expected, atol=1e-3, rtol=1e-4)
    move(parameter for parameter in adapted.parameters() if parameter.requires_grad)
    assert (theirs.logits() - expected).abs().max() > 0.1
    adapted.save_pretrained(tmp_path / "theirs")
    pm.load(again.model, tmp_path / "theirs")
    torch.testing.assert_close(again.logits(), theirs.logits(), atol=1e-3, rtol=1e-4)
