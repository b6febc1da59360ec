"""Adapter folders: round trip, what is refused and why, and that nothing is ever half-written."""

import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import peft_methods as pm
from peft_methods import files


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.q_proj, self.fc = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x):
        return self.fc(torch.tanh(self.q_proj(x)))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers, self.fc = nn.Sequential(Block(), Block()), nn.Linear(6, 3)

    def forward(self, x):
        return self.fc(self.layers(x))


X = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))


def trained(**options):
    model = Model()
    attachment = pm.attach(model, pm.LoRA(**{"rank": 3, "alpha": 5, "targets": ["q_proj", "fc"], **options}))
    for parameter in attachment.parameters():
        nn.init.normal_(parameter, std=0.5)
    return model, attachment


@pytest.fixture
def folder(tmp_path):
    trained()[1].save(tmp_path / "adapter")
    return tmp_path / "adapter"


def edit(folder, **fields):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def untouched(model):
    return not any("lora" in n for n, _ in model.named_modules()) and all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rank_stabilized": True, "dropout": 0.25},
        {"targets": "re:fc"},
        {"targets": ["0.fc"]},
        {"targets": "all-linear"},
    ],
)
def test_round_trip(tmp_path, options):
    model, attachment = trained(**options)
    attachment.save(tmp_path, base_model="some/model")
    other = Model()
    loaded = pm.load(other, tmp_path)
    assert torch.equal(other.eval()(X), model.eval()(X)) and list(loaded.modules) == list(attachment.modules)
    assert loaded.method.dropout == attachment.method.dropout
    assert all(part.scale == attachment.modules[path].scale for path, part in loaded.modules.items())
    other(X).sum().backward()
    assert all(p.requires_grad and p.grad is not None for p in loaded.parameters())
    assert json.loads((tmp_path / "adapter_config.json").read_text())["base_model_name_or_path"] == "some/model"


def test_saving_twice_replaces_and_leaves_other_files(folder):
    (folder / "README.md").write_text("a model card")
    model, attachment = trained(rank=2)
    attachment.save(folder)
    assert sorted(os.listdir(folder)) == ["README.md", "adapter_config.json", "adapter_model.safetensors"]
    other = Model()
    pm.load(other, folder)
    assert torch.equal(other(X), model(X))


def test_the_same_adapter_is_the_same_bytes(tmp_path):
    """safetensors alone writes two entries of metadata in either order."""
    attachment = pm.attach(Model(), pm.GRIT(rank=2, targets=["fc"]))
    written = set()
    for number in range(8):
        attachment.save(tmp_path / str(number))
        written.add((tmp_path / str(number) / files.WEIGHTS).read_bytes())
    assert len(written) == 1
    assert type(pm.load(Model(), tmp_path / "0").method) is pm.GRIT


@pytest.mark.parametrize("failing", ["adapter_model.safetensors", "adapter_config.json", "sync"])
def test_interrupted_save_is_never_a_mixture(folder, monkeypatch, failing):
    before = {name: (folder / name).read_bytes() for name in os.listdir(folder)}

    def fail(*args):
        raise OSError("disk full")

    if failing == "sync":
        monkeypatch.setattr(files.os, "fsync", fail)
    else:
        replace = os.replace
        monkeypatch.setattr(files.os, "replace", lambda a, b: fail() if str(b).endswith(failing) else replace(a, b))
    with pytest.raises(OSError, match="disk full"):
        trained(rank=2)[1].save(folder)
    if failing == "sync":  # nothing has been touched
        assert {name: (folder / name).read_bytes() for name in os.listdir(folder)} == before
    else:
        with pytest.raises(pm.AdapterError, match="adapter_config.json is missing"):
            pm.load(Model(), folder)
    assert not [name for name in os.listdir(folder) if name.startswith(".")]


@pytest.mark.parametrize(
    ("field", "value"),
    [("bias", "some"), ("init_lora_weights", "pissa"), ("layer_replication", [[0, 2]]), ("r", 0),
     ("trainable_token_indices", [1]), ("target_parameters", ["x"]), ("lora_bias", True), ("lora_dropout", 2),
     ("peft_type", "IA3"), ("an_option_of_tomorrow", "on"), ("lora_alpha", None)],
)  # fmt: skip
def test_options_that_cannot_be_represented(folder, field, value):
    edit(folder, **{field: value})
    model = Model()
    name = {"r": "rank", "lora_dropout": "dropout", "lora_alpha": "real number"}.get(field, field)
    with pytest.raises(pm.AdapterError, match=f"adapter: .*{name}"):
        pm.load(model, folder)
    assert untouched(model)


@pytest.mark.parametrize("field", ["r", "lora_alpha", "peft_type"])
def test_missing_fields(folder, field):
    config = json.loads((folder / "adapter_config.json").read_text())
    del config[field]
    (folder / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(pm.AdapterError, match=field):
        pm.load(Model(), folder)


def rewrite(folder, change):
    path = folder / "adapter_model.safetensors"
    save_file(change(load_file(path)), path, {"format": "pt"})


def test_keys_that_do_not_fit(folder):
    rewrite(folder, lambda t: {k.replace("layers.1.q_proj", "layers.1.query"): v for k, v in t.items()})
    model = Model()
    with pytest.raises(pm.AdapterError, match=r"layers\.1\.query\.lora_A\.weight' \(nearest: .*layers\.1\.q_proj"):
        pm.load(model, folder)
    assert untouched(model)
    attachment = pm.load(model, folder, strict=False)
    assert list(attachment.modules) == ["layers.0.q_proj", "layers.0.fc", "layers.1.fc", "fc"]


def test_missing_keys(folder):
    rewrite(folder, lambda t: {k: v for k, v in t.items() if "layers.1.q_proj" not in k})
    model = Model()
    with pytest.raises(pm.AdapterError, match=r"2 keys are missing: '.*layers\.1\.q_proj\.lora_A\.weight'"):
        pm.load(model, folder)
    assert untouched(model)
    assert len(pm.load(model, folder, strict=False).modules) == 4


def test_nothing_fits(folder):
    rewrite(folder, lambda t: {"model." + k: v for k, v in t.items()})
    for targets in (["q_proj", "fc"], ["query"], None):
        edit(folder, target_modules=targets)
        for strict in (True, False):
            with pytest.raises(pm.AdapterError, match="no place"):
                pm.load(Model(), folder, strict=strict)


def test_shapes_that_do_not_fit(folder):
    edit(folder, r=4)
    model = Model()
    with pytest.raises(pm.AdapterError, match=r"0\.q_proj\.lora_A: shape \[3, 6\] where \[4, 6\]"):
        pm.load(model, folder)
    assert untouched(model)


def test_folders_that_hold_no_adapter(folder, tmp_path):
    model = Model()
    for where in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(pm.AdapterError, match="holds no adapter"):
            pm.load(model, where)
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(b"nonsense")
    with pytest.raises(pm.AdapterError, match="not a safetensors file"):
        pm.load(model, folder)
    weights.unlink()
    with pytest.raises(pm.AdapterError, match="adapter_model.safetensors is missing"):
        pm.load(model, folder)
    (folder / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(pm.AdapterError, match="pickle .* save_pretrained"):
        pm.load(model, folder)
    for text in ("[]", "{"):
        (folder / "adapter_config.json").write_text(text)
        with pytest.raises(pm.AdapterError, match="not a JSON object"):
            pm.load(model, folder)
    assert untouched(model)
