"""Every name that `--method` takes makes a method for every part of a model."""

import copy
import json
from types import SimpleNamespace

import pytest
import torch

import peft_methods as pm
import vlm_data
import vlm_models
from vlm_runs.adapters import VISION, put_on
from vlm_train.adapting.attaching import attach, check_methods, count_trained, rounding_note
from vlm_train.adapting.methods import method_of
from vlm_train.errors import ConfigError
from vlm_train.loading import plan_model
from vlm_train.options.checks import METHODS
from vlm_train.options.config import TrainConfig
from vlm_train.processes import Processes
from vlm_train.run import run


@pytest.fixture(scope="module")
def vlm():
    return vlm_models.load("tiny-git", device="cpu")


@pytest.mark.parametrize("targets", ["language", "vision", "all"])
@pytest.mark.parametrize("method", METHODS)
def test_part_of_the_model(vlm, method, targets):
    chosen = method_of(TrainConfig(method=method, targets=targets), vlm)
    if method == "prefix" and targets == "vision":  # it has no causal attention
        with pytest.raises(pm.TargetError, match="matches none of git.encoder"):
            pm.attach(vlm.model, chosen)
        return
    attachment = pm.attach(vlm.model, chosen)
    names = [name for name, _ in attachment.named_parameters()]
    inside = {"language": vlm.language_parts, "vision": vlm.vision_parts, "all": vlm.language_parts + vlm.vision_parts}
    assert names and all(name.startswith(tuple(f"{part}." for part in inside[targets])) for name in names)
    assert vlm.trains_vision == (targets != "language" and method != "prefix")
    attachment.detach()


def test_weights_that_are_trained_in_16_bits_are_told():
    vlm = vlm_models.load("tiny-git", device="cpu", dtype="bfloat16")
    for method in ("lora", "houlsby", "prefix"):
        attachment = attach(TrainConfig(method=method), vlm)
        assert rounding_note(attachment) is None
        attachment.detach()
    for method in ("full", "bitfit", "norm"):
        attachment = attach(TrainConfig(method=method), vlm)
        assert rounding_note(attachment).startswith("the trained weights are in bfloat16, ")
        attachment.detach()


def test_expressions_and_names(vlm):
    method = method_of(TrainConfig(method="bitfit", targets=r"re:git\.encoder\.layer\.0\..*"), vlm)
    assert {name.split(".")[3] for name in method.parts(vlm.model)[""].adapter_parameters()} == {"0"}
    assert method_of(TrainConfig(targets="query,value", rank=3), vlm) == pm.LoRA(3, 32.0, targets=["query", "value"])
    with pytest.raises(ConfigError, match="--targets 'query'.*--method norm takes language, vision, all"):
        method_of(TrainConfig(method="norm", targets="query"), vlm)


def test_further_options_of_a_method(vlm):
    config = TrainConfig(method="grit", method_options="energy=0.99, rebalance_every=50,damping=1e-2")
    method = method_of(config, vlm)
    assert (method.energy, method.rebalance_every, method.damping) == (0.99, 50, 0.01)
    listed = method_of(TrainConfig(method_options="bias=all,train_also=[output]"), vlm)
    assert (listed.bias, listed.train_also) == ("all", ("output",))
    assert method_of(TrainConfig(method="prefix", method_options="length=4"), vlm).length == 4
    placed = method_of(TrainConfig(method="adapter", method_options="placement=pfeiffer"), vlm)
    assert placed == method_of(TrainConfig(method="pfeiffer"), vlm)


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("grit", "enregy=0.9", "'enregy' is no option of --method grit; did you mean energy?"),
        ("lora", "rank=4", "'rank' is no option of --method lora"),
        ("bitfit", "within=a", "'within' is no option of --method bitfit; bitfit has none"),
        ("houlsby", "placement=pfeiffer", "'placement' is no option of --method houlsby; houlsby has reduction"),
        ("grit", "energy=2", "energy=2: give a share"),
        ("prefix", "length", "must be NAME=VALUE"),
        ("prefix", "length=[", "must be NAME=VALUE"),
    ],
)
def test_further_options_that_cannot_be_used(method, options, message):
    with pytest.raises(ConfigError, match=f"^--method-options.*{message}") as told:
        check_methods(TrainConfig(method=method, method_options=options))
    assert "\n" not in str(told.value)


@pytest.fixture(scope="module")
def batch(vlm):
    collate = vlm_data.collator(vlm.processor, vlm.family, vlm.max_length)
    return collate(vlm_data.open("scenes", split="families", size=2).to_list())


def trained(vlm, batch, config, folder):
    """Attach, do one step, save; the adapter and the model's loss with it."""
    torch.manual_seed(0)
    with torch.no_grad():
        base = vlm(batch)[0].item()
    attached = attach(config, vlm)
    with torch.no_grad(), attached.disabled():
        assert vlm(batch)[0].item() == base
    optimizer = torch.optim.SGD(attached.parameter_groups(0.1))
    attached.bind(optimizer)
    attached.loss_terms(10)
    before = {name: tensor.clone() for name, tensor in attached.state_dict().items()}
    vlm(batch)[0].backward()
    optimizer.step()
    optimizer.zero_grad()
    changed = {
        name
        for name, tensor in attached.state_dict().items()
        if name in before and not torch.equal(tensor, before[name])
    }
    attached.save(folder, base_model="tiny-git")
    with torch.no_grad():
        return attached, vlm(batch)[0].item(), changed


@pytest.mark.parametrize(("method", "vision"), [("lora", "houlsby"), ("full", "lora")])
def test_a_method_on_each_part(vlm, batch, method, vision, tmp_path):
    config = TrainConfig(method=method, vision_method=vision)
    both, loss, changed = trained(vlm, batch, config, tmp_path / "adapter")
    inside = {False: vlm.language_parts, True: vlm.vision_parts}
    assert {name.startswith(f"{VISION}:") for name in changed} == {False, True}
    for name in changed:
        assert name.removeprefix(f"{VISION}:").startswith(inside[name.startswith(f"{VISION}:")])
    assert vlm.trains_vision and both.trainable == sum(parameter.numel() for parameter in both.parameters())
    state = {name: tensor.clone() for name, tensor in both.state_dict().items()}
    with torch.no_grad():
        for parameter in both.parameters():
            parameter.zero_()
        both.load_state_dict(state)
        assert vlm(batch)[0].item() == loss
    for attachment in (both.vision, both.first):
        attachment.detach()

    with torch.no_grad():
        base = vlm(batch)[0].item()
        loaded = put_on(vlm.model, tmp_path / "adapter")
        assert len(loaded) == 2 and vlm(batch)[0].item() == pytest.approx(loss, rel=1e-6) != base
    for attachment in reversed(loaded):
        attachment.detach()


PEFT = {
    "LORA": {"r": 4, "use_rslora": True},
    "LOHA": {"r": 2},
    "ADALORA": {"init_r": 4, "target_r": 2, "total_step": 10, "tinit": 1, "tfinal": 2},
}


@pytest.mark.parametrize("kind", PEFT)
def test_any_configuration_of_peft(kind, batch, tmp_path):
    peft = pytest.importorskip("peft")
    file = tmp_path / "peft.json"
    file.write_text(json.dumps({"peft_type": kind, **PEFT[kind]}))
    vlm = vlm_models.load("tiny-git", device="cpu")
    config = TrainConfig(method="peft", peft_config=str(file))
    check_methods(config)
    attached, loss, changed = trained(vlm, batch, config, tmp_path / "adapter")
    assert changed <= attached.state_dict().keys() and changed
    assert not vlm.trains_vision and 0 < attached.trainable < attached.total / 2
    assert json.loads((tmp_path / "adapter/adapter_config.json").read_text())["base_model_name_or_path"] == "tiny-git"

    fresh = vlm_models.load("tiny-git", device="cpu")
    peft.PeftModel.from_pretrained(fresh.model, str(tmp_path / "adapter"))
    with torch.no_grad():
        assert fresh(batch)[0].item() == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize("stopped_after", [5, 9])  # while ranks are shared out, and when that is done
def test_adalora_goes_on_as_if_it_had_not_been_stopped(stopped_after, batch, tmp_path):
    pytest.importorskip("peft")
    file = tmp_path / "peft.json"
    file.write_text(json.dumps({"peft_type": "ADALORA", **PEFT["ADALORA"]}))
    config = TrainConfig(method="peft", peft_config=str(file))

    def begun():
        vlm = vlm_models.load("tiny-git", device="cpu")
        attached = attach(config, vlm)
        optimizer = torch.optim.AdamW(attached.parameter_groups(1e-2))
        attached.bind(optimizer)
        return vlm, attached, optimizer

    def step(vlm, attached, optimizer):
        attached.loss_terms(1)
        vlm(batch)[0].backward()
        optimizer.step()
        optimizer.zero_grad()

    job = begun()
    for number in range(10):
        step(*job)
        if number + 1 == stopped_after:
            state = {name: tensor.clone() for name, tensor in job[1].state_dict().items()}
            again = begun()
            again[1].load_state_dict(state)
            again[2].load_state_dict(copy.deepcopy(job[2].state_dict()))
    for _ in range(stopped_after, 10):
        step(*again)
    found, expected = again[1].state_dict(), job[1].state_dict()
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)
    left = sum(int(tensor.sum()) for name, tensor in expected.items() if "rank_pattern" in name)
    assert left == 2 * sum("lora_A" in name for name, _ in job[1].peft_model.named_parameters())  # target_r of each
    for number, (_, attached, _) in enumerate((job, again)):
        attached.save(tmp_path / str(number))
    one, other = ((tmp_path / number / "adapter_model.safetensors").read_bytes() for number in "01")
    assert one == other


def test_the_loss_of_adalora_has_the_term_that_peft_gives_it(tmp_path, monkeypatch):
    pytest.importorskip("peft")
    file = tmp_path / "peft.json"
    file.write_text(json.dumps({"peft_type": "ADALORA", **PEFT["ADALORA"], "orth_reg_weight": 0.3}))
    attached = attach(
        TrainConfig(method="peft", peft_config=str(file)), vlm_models.load("tiny-git", device="cpu", dtype="float64")
    )
    tuner = attached.peft_model.base_model
    monkeypatch.setattr(tuner.model, "forward", lambda: SimpleNamespace(loss=torch.zeros(())))
    theirs = torch.autograd.grad(tuner.forward().loss, attached.parameters(), allow_unused=True)
    attached.loss_terms(7)
    for parameter, gradient in zip(attached.parameters(), theirs, strict=True):
        assert (parameter.grad is None) == (gradient is None)
        assert gradient is None or torch.allclose(parameter.grad, gradient)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not JSON"),
        ('["LORA"]', "peft_type is None; known: ADALORA"),
        ('{"peft_type": "LORAX"}', "peft_type is 'LORAX'; known"),
        ('{"peft_type": "LORA", "lora_alhpa": 3}', "LORA has no 'lora_alhpa'; did you mean lora_alpha?"),
        ('{"peft_type": "LORA", "target_modules": ["query"]}', "^--targets: .* has target_modules; leave one"),
        ('{"peft_type": "ADALORA", "init_r": 4, "total_step": 10}', "target_r 8 is more than init_r 4"),
        ('{"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 4}', "use --method prefix"),
        ('{"peft_type": "LN_TUNING"}', "LN_TUNING needs target_modules, norms; or use --method norm"),
    ],
)
def test_a_configuration_of_peft_that_cannot_be_used(content, message, tmp_path):
    pytest.importorskip("peft")
    (tmp_path / "peft.json").write_text(content)
    config = TrainConfig(method="peft", targets="all", peft_config=str(tmp_path / "peft.json"))
    with pytest.raises(ConfigError, match=message) as told:
        check_methods(config)
    assert "\n" not in str(told.value) and "peft.json" in str(told.value)


@pytest.mark.parametrize(
    ("content", "quantization", "message"),
    [
        ({"peft_type": "LOHA"}, "nf4", "cannot put this kind on quantized weights; use --quantization none, or LORA"),
        ({"peft_type": "DELORA"}, "int8", "cannot put this kind on quantized weights"),
        ({"peft_type": "TRAINABLE_TOKENS"}, "none", "TRAINABLE_TOKENS trains nothing in this model"),
        (
            {"peft_type": "LORA", "modules_to_save": ["lm_head"]},
            "none",
            "share lm_head's weights; add ensure_weight_ty",
        ),
    ],
)
def test_what_peft_finds_out_too_late_is_refused_when_it_is_put_on(content, quantization, message, tmp_path):
    pytest.importorskip("peft")
    if quantization != "none":
        pytest.importorskip("bitsandbytes")
    (tmp_path / "peft.json").write_text(json.dumps(content))
    config = TrainConfig(method="peft", peft_config=str(tmp_path / "peft.json"))
    with pytest.raises(ConfigError, match=f"^--peft-config .*{message}"):
        attach(config, vlm_models.load("tiny-qwen2-vl", quantization, device="cpu"))


def test_a_head_that_stays_tied_to_its_embeddings_comes_back(tmp_path):
    pytest.importorskip("peft")
    tied = {"peft_type": "LORA", "modules_to_save": ["lm_head"], "ensure_weight_tying": True}
    (tmp_path / "peft.json").write_text(json.dumps(tied))
    vlm = vlm_models.load("tiny-qwen2-vl", device="cpu")
    attach(TrainConfig(method="peft", peft_config=str(tmp_path / "peft.json")), vlm).save(tmp_path / "adapter")
    assert put_on(vlm_models.load("tiny-qwen2-vl", device="cpu").model, tmp_path / "adapter")


@pytest.mark.parametrize("name", vlm_models.TINY)
def test_without_weights_as_many_parameters_are_counted(name):
    outline, whole = vlm_models.plan(name).config, vlm_models.load(name, device="cpu")
    for number, method in enumerate(METHODS):
        targets = ("language", "all")[number % 2]
        config = TrainConfig(model=name, method=method, targets=targets)
        attached = attach(config, whole)
        assert count_trained(config, vlm_models.skeleton(outline, name)) == attached.trainable
        attached.detach()
        whole.model.requires_grad_(True)


def test_kinds_of_peft_that_begin_with_the_weights_cannot_be_counted(tmp_path):
    pytest.importorskip("peft")
    (tmp_path / "peft.json").write_text('{"peft_type": "FROD"}')
    config = TrainConfig(method="peft", peft_config=str(tmp_path / "peft.json"))
    assert count_trained(config, vlm_models.skeleton(vlm_models.plan("tiny-qwen2-vl").config)) is None


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"method": "prefix", "targets": "vision"}, "^--targets: prefix finds nothing to train in the vision part of"),
        ({"method": "pfeiffer", "targets": "q_proj"}, "--method pfeiffer takes language, vision, all, or re:"),
        ({"targets": "q_prj"}, "'q_prj' matches no module; nearest: q_proj"),
    ],
)
def test_targets_that_a_method_cannot_use_are_refused_before_the_model_is_loaded(options, told, tmp_path, monkeypatch):
    monkeypatch.setattr(vlm_models.Plan, "load", lambda _: pytest.fail("loaded"))
    with pytest.raises((ConfigError, pm.TargetError), match=told):
        run(TrainConfig(**options, device="cpu", out=str(tmp_path / "run")))


def test_predicted_memory_is_that_of_the_method():
    memory = {}
    for method in ("full", "bitfit"):
        _, plan = plan_model(TrainConfig(method=method, device="cpu"), Processes())
        memory[method] = plan.memory.optimizer
    vlm = vlm_models.load("tiny-qwen2-vl", device="cpu")
    parts = tuple(f"{part}." for part in vlm.language_parts)
    inside = {name: one for name, one in vlm.model.named_parameters() if name.startswith(parts)}
    biases = sum(one.numel() for name, one in inside.items() if name.endswith("bias"))
    assert memory == {"full": 16 * sum(one.numel() for one in inside.values()), "bitfit": 16 * biases}
