"""LoRA where modules share weights, are trained whole, or compute in a way of their own; and PEFT's files of these."""

import json
import re

import pytest
import torch
from torch import nn

import peft_methods as pm

WORDS = torch.tensor([[1, 0, 3], [10, 3, 3]])


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.norm = nn.Linear(8, 8), nn.LayerNorm(8)

    def forward(self, x):
        return x + torch.tanh(self.fc(self.norm(x)))


class Model(nn.Module):
    """A tiny language model, its head tied to its embedding, with a module whose name ends in another's."""

    def __init__(self):
        super().__init__()
        self.words, self.layers = nn.Embedding(11, 8), nn.ModuleList([Block(), Block()])
        self.final_norm, self.head = nn.LayerNorm(8), nn.Linear(8, 11, bias=False)
        self.head.weight = self.words.weight

    def forward(self, words):
        x = self.words(words)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.final_norm(x))


def base():
    torch.manual_seed(0)
    return Model().double().eval()


def move(model):
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.2 * torch.randn_like(parameter)


def near(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-10)


OURS = {
    "tied embedding": dict(targets=["fc"], train_also=["words"]),
    "tied head": dict(targets=["fc"], train_also=["head"]),
    "a name in another's end": dict(targets=["fc"], train_also=["norm"]),
    "by an expression": dict(targets=["fc"], train_also=r"re:layers\.1\.norm|head"),
    "around a target": dict(targets=["fc"], train_also=["layers.1"]),
    "LoRA on a tied embedding": dict(targets=["fc", "words"]),
}


@pytest.mark.parametrize("options", OURS.values(), ids=OURS)
def test_ours_in_peft_and_here_again(options, tmp_path):
    peft = pytest.importorskip("peft")
    model = base()
    attachment = pm.attach(model, pm.LoRA(rank=3, **options))
    move(model)
    expected = model(WORDS)
    attachment.save(tmp_path)
    near(peft.PeftModel.from_pretrained(base(), tmp_path).eval()(WORDS), expected)
    again = base()
    loaded = pm.load(again, tmp_path)
    near(again(WORDS), expected)
    assert loaded.trainable == attachment.trainable
    move(again)  # and what was shared still is
    assert (again.head.weight is again.words.weight) == (model.head.weight is model.words.weight)


def theirs(folder, model=None, **options):
    peft = pytest.importorskip("peft")
    trained = peft.get_peft_model(model or base(), peft.LoraConfig(r=3, **options)).eval()
    move(trained)
    trained.save_pretrained(folder)
    return trained


def test_modules_to_save_go_by_the_end_of_a_name_as_in_peft(tmp_path):
    trained = theirs(tmp_path, target_modules=["fc"], modules_to_save=["norm"])
    model = base()
    attachment = pm.load(model, tmp_path)
    near(model(WORDS), trained(WORDS))
    names = {name for name, _ in attachment.named_parameters()}
    assert "final_norm.weight" in names and "layers.1.norm.bias" in names


def qwen():
    """Peft looks for embeddings in models of transformers only."""
    transformers = pytest.importorskip("transformers")
    config = transformers.Qwen2Config(
        vocab_size=20, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    return transformers.Qwen2ForCausalLM(config).double().eval()


def test_peft_keeps_tied_modules_together(tmp_path):
    options = {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}
    trained = theirs(tmp_path, qwen(), target_modules=["q_proj"], **options)
    model = qwen()
    pm.load(model, tmp_path)
    near(model(WORDS).logits, trained(WORDS).logits)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_what_peft_trained_apart_is_refused_where_it_is_shared_here(tmp_path):
    theirs(tmp_path, target_modules=["fc"], modules_to_save=["words"])
    model = base()
    with pytest.raises(pm.AdapterError, match=r"PEFT trained words.weight apart .* ensure_weight_tying=True"):
        pm.load(model, tmp_path)
    model.head.weight = nn.Parameter(model.words.weight.detach().clone())
    pm.load(model, tmp_path)


def test_weights_of_the_base_that_peft_adds_are_checked(tmp_path):
    trained = theirs(tmp_path, qwen(), target_modules=["q_proj", "embed_tokens"])
    model = qwen()
    pm.load(model, tmp_path)
    near(model(WORDS).logits, trained(WORDS).logits)
    other = qwen()
    with torch.no_grad():
        other.model.embed_tokens.weight += 1
    with pytest.raises(pm.AdapterError, match=r"trained on another .*; load or resize that base first"):
        pm.load(other, tmp_path)


def test_from_peft_is_the_method_alone(tmp_path):
    trained = theirs(tmp_path, target_modules=["fc"], modules_to_save=["norm"], rank_pattern={r"layers\.1\.fc": 2})
    method = pm.from_peft(tmp_path)
    assert type(method) is pm.LoRA and method.rank == 3 and method.rank_pattern == {r"layers\.1\.fc": 2}
    attachment = pm.attach(base(), method)
    assert attachment.trainable == sum(p.numel() for p in trained.parameters() if p.requires_grad)
    assert attachment.modules["layers.0.fc"].lora_B.eq(0).all()
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"layer_replication": [[0, 2]]}))
    with pytest.raises(pm.AdapterError, match=r"layer_replication=\[\[0, 2\]\]: .* not supported") as raised:
        pm.from_peft(tmp_path)
    assert "\n" not in str(raised.value) and str(tmp_path) in str(raised.value)


def test_from_peft_of_a_prefix(tmp_path):
    method = pm.Prefix(length=4, shift_positions=True)
    pm.attach(qwen(), method).save(tmp_path)
    assert pm.from_peft(tmp_path) == method


def test_all_targets_inside_what_is_trained_whole():
    with pytest.raises(pm.TargetError, match="no target is left; use FullFineTuning"):
        pm.attach(base(), pm.LoRA(targets=["fc"], train_also=["layers"]))


class Scaled(nn.Embedding):
    embed_scale = 3.0

    def forward(self, i):
        return super().forward(i) * self.embed_scale


class Shifted(nn.Embedding):
    def forward(self, i):
        return super().forward(i + 1)


def test_a_scaled_embedding_is_merged_as_it_runs():
    model = nn.Sequential(Scaled(6, 4)).double()
    attachment = pm.attach(model, pm.LoRA(2, targets=["0"]))
    move(model)
    i = torch.arange(6)
    expected = model(i)
    attachment.merge()
    near(model(i), expected)


@pytest.mark.parametrize(
    ("layer", "message"), [(nn.Embedding(6, 4, max_norm=1.0), "max_norm"), (Shifted(6, 4), "forward of its own")]
)
def test_embeddings_that_compute_something_else(layer, message):
    with pytest.raises(pm.TargetError, match=f"^0: .*{message}.*leave it out"):
        pm.attach(nn.Sequential(layer), pm.LoRA(2, targets=["0"]))


@pytest.mark.parametrize("options", [{"dilation": 2}, {"padding_mode": "reflect"}])
def test_convolutions_that_peft_computes_differently(options, tmp_path):
    def conv():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 4, 3, padding=2, **options)).double()

    model, x = conv(), torch.randn(1, 3, 7, 7, dtype=torch.float64)
    attachment = pm.attach(model, pm.LoRA(2, targets=["0"]))
    move(model)
    expected = model(x)
    attachment.save(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"] == "peft_methods.LoRA"
    again = conv()
    loaded = pm.load(again, tmp_path)
    near(again(x), expected)
    loaded.merge()
    near(again(x), expected)
    peft = pytest.importorskip("peft")
    peft.get_peft_model(conv(), peft.LoraConfig(r=2, target_modules=["0"])).save_pretrained(tmp_path)
    with pytest.raises(pm.AdapterError, match="0: PEFT's LoRA has no dilation"):
        pm.load(conv(), tmp_path)


def test_dora_and_others_on_one_layer():
    model = nn.Sequential(nn.Linear(8, 8))
    lora = pm.attach(model, pm.LoRA(2))
    with pytest.raises(pm.TargetError, match="0: DoRA has to come first"):
        pm.attach(model, pm.LoRA(2, dora=True))
    lora.detach()
    pm.attach(model, pm.LoRA(2, dora=True))
    lora = pm.attach(model, pm.LoRA(2))
    with pytest.raises(pm.AdapterError, match=re.escape("the DoRA beneath would rescale")):
        lora.merge()


def test_combining_what_starts_from_the_weight():
    model = nn.Sequential(nn.Linear(8, 8)).double()
    attachment = pm.attach(model, pm.LoRA(2, initialization="pissa"))
    move(model)
    x = torch.randn(3, 8, dtype=torch.float64)
    expected = model(x)
    pm.combine([attachment])
    near(model(x), expected)
