"""What `accelerate launch` can ask for by the environment it gives; what processes do is in tests/ of the whole."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

import vlm_models
import vlm_train.dry_run
from vlm_train.deepspeed import DeepSpeed
from vlm_train.engine.memory import too_large
from vlm_train.errors import ConfigError, TrainError
from vlm_train.launch import Launch, read_launch
from vlm_train.options.config import AUTO, TrainConfig
from vlm_train.processes import Processes
from vlm_train.run import run
from vlm_train.sharding import check_sharded, layers_of

DEEPSPEED = {"ACCELERATE_USE_DEEPSPEED": "true"}


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({**DEEPSPEED, "ACCELERATE_DEEPSPEED_ZERO_STAGE": "4"}, "--use_deepspeed: stage 4 .*write 0, 1, 2 or 3"),
        (
            {**DEEPSPEED, "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": "cpu"},
            "--use_deepspeed: offload_param is not done here",
        ),
        ({**DEEPSPEED, "ACCELERATE_DEEPSPEED_CONFIG_FILE": "no.json"}, "no.json: No such file .*name a DeepSpeed"),
        ({"ACCELERATE_USE_MEGATRON_LM": "true"}, "--use_megatron_lm: "),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "1"}, "add --fsdp_version 2"),
        (
            {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_OFFLOAD_PARAMS": "true"},
            "--fsdp_offload_params true: .*leave it out",
        ),
        (
            {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_ACTIVATION_CHECKPOINTING": "true"},
            "--fsdp_activation_checkpointing true: .*leave it out",
        ),
    ],
)
def test_what_a_launcher_cannot_ask_for_is_refused_before_anything_is_read(environment, said, monkeypatch, tmp_path):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=said):
        run(TrainConfig(data="no such file", out=str(tmp_path / "run")))
    assert not list(tmp_path.iterdir())


def test_one_process_has_nobody_to_share_with(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    alone = Processes()
    assert (alone.count, alone.sharded, alone.sum(2.0)) == (1, False, [2.0])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"method": "full"}, "--method full: .*--method lora"),
        ({"quantization": "nf4"}, "--quantization nf4: .*--quantization none"),
        ({"batch_size": AUTO}, "--batch-size auto: .*give a number"),
        ({"gradient_checkpointing": True}, "--gradient-checkpointing: --use_fsdp .*leave it out"),
    ],
)
def test_options_that_do_not_go_with_sharding(options, said):
    with pytest.raises(ConfigError, match=said):
        check_sharded(TrainConfig(data="scenes", **options), "--use_fsdp")
    check_sharded(TrainConfig(data="scenes", method="full", targets="vision"), "--use_fsdp")


def deepspeed(path, said) -> DeepSpeed:
    path.write_text(said if isinstance(said, str) else json.dumps(said))
    return DeepSpeed.of({**DEEPSPEED, "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(path)})


def test_a_deepspeed_configuration_as_trainers_have_it_passes_through(tmp_path):
    """With what LLaMA-Factory's and transformers' examples contain."""
    auto = ["train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping"]
    said = {
        **dict.fromkeys(auto, "auto"),
        "zero_allow_untested_optimizer": True,
        "fp16": {"enabled": "auto", "loss_scale": 0, "initial_scale_power": 16},
        "bf16": {"enabled": "auto"},
        "optimizer": {"type": "AdamW", "params": {"lr": "auto", "betas": "auto", "weight_decay": "auto"}},
        "zero_optimization": {
            "stage": 3,
            "offload_param": {"device": "none"},
            "overlap_comm": True,
            "stage3_gather_16bit_weights_on_model_save": True,
        },
        "steps_per_print": 2000,
    }
    path = tmp_path / "zero-3.json"
    read = deepspeed(path, said)
    assert str(read) == f"{path}, ZeRO 3: done by torch, the base model shared out by FSDP2"
    read.check(TrainConfig(data="scenes"), 2, torch.float32)
    environment = {**DEEPSPEED, "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(path)}
    assert (read_launch(environment).sharded, read_launch(environment).asked) == (True, str(path))
    numbers = dict(zip(auto, (16, 4, 2, 0.5), strict=True))
    agreeing = TrainConfig(data="scenes", batch_size=8, accumulate=2, max_gradient_norm=0.5)
    read = deepspeed(path, {**said, **numbers, "bf16": {"enabled": True}})
    read.check(agreeing, 2, torch.bfloat16)
    for options, dtype, message in [
        ({"accumulate": 1}, torch.bfloat16, "gradient_accumulation_steps 2 is --accumulate 2 here; give that, or"),
        ({"batch_size": 4}, torch.bfloat16, "train_micro_batch_size_per_gpu 4 is --batch-size 8 here"),
        ({"max_gradient_norm": 1.0}, torch.bfloat16, "gradient_clipping 0.5 is --max-gradient-norm 0.5 here"),
        ({}, torch.float32, "bf16 is --dtype bfloat16 here"),
        ({"method": "full"}, torch.bfloat16, "ZeRO 3: gradients and moments of --method full"),
    ]:
        with pytest.raises(ConfigError, match=message):
            read.check(replace(agreeing, **options), 2, dtype)
    many = TrainConfig(data="scenes", batch_size=2, accumulate=49)  # 49 times a 49th is not quite 1
    deepspeed(path, {"train_batch_size": 98}).check(many, 2, torch.float32)
    with pytest.raises(ConfigError, match="train_batch_size 64 is --batch-size 32 here"):
        deepspeed(path, {"train_batch_size": 64}).check(agreeing, 2, torch.float32)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}, "offload_optimizer is not done"),
        ({"pipeline": {"stages": 2}}, "'pipeline' is not done here; take it out"),
        ({"scheduler": {"type": "WarmupLR"}}, "'scheduler' is not done here"),
        ({"optimizer": {"type": "Lamb"}}, "'optimizer': say it by --optimizer, --learning-rate"),
        ({"optimizer": {"type": "AdamW", "params": {"lr": 1e-4}}}, "'optimizer': say it by"),
        ("{", r"ds.json: no JSON \(Expecting property name"),
        ([], "ds.json: no DeepSpeed configuration"),
    ],
)
def test_what_of_deepspeed_is_not_done_is_refused(said, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        deepspeed(tmp_path / "ds.json", said)


def test_deepspeed_by_options_of_the_launch():
    given = {"ZERO_STAGE": "1", "OFFLOAD_PARAM_DEVICE": "none", "OFFLOAD_OPTIMIZER_DEVICE": "none"}
    options = {f"ACCELERATE_DEEPSPEED_{name}": value for name, value in given.items()}
    more = {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4", "ACCELERATE_GRADIENT_CLIPPING": "0.3"}
    read = read_launch({**DEEPSPEED, **options, **more})
    assert not read.sharded and read.deepspeed.stage == 1
    read.deepspeed.check(TrainConfig(data="scenes", accumulate=4, max_gradient_norm=0.3), 2, torch.float32)
    with pytest.raises(ConfigError, match="--use_deepspeed: gradient_accumulation_steps 4 is --accumulate 4 here"):
        read.deepspeed.check(TrainConfig(data="scenes"), 2, torch.float32)


@pytest.mark.parametrize("name", vlm_models.TINY)
def test_the_layers_of_the_language_model_are_found_in_every_family(name):
    vlm = vlm_models.load(name, device="cpu")
    layers = list(layers_of(vlm))
    assert len(layers) == vlm.model.config.get_text_config(decoder=True).num_hidden_layers
    inside = {parameter for layer in layers for parameter in layer.parameters()}
    linear = {vlm.model.get_submodule(target).weight for target in vlm.targets("language")}
    assert linear <= inside


def test_which_batch_fits_is_not_tried_by_one_of_several_that_share_a_model():
    vlm = SimpleNamespace(device="cuda", unshard=None)  # as FSDP's modules have it
    config = TrainConfig(data="scenes", batch_size=8)
    error = too_large(vlm, collate=None, rows=[{}] * 4, config=config, processes=2, step=3)
    assert str(error).endswith("with 4 rows in a forward pass; use a lower --batch-size and a higher --accumulate")


def test_errors_of_the_others_are_told_from_own_ones():
    alone = Processes()
    with pytest.raises(TrainError, match="another process of the run has stopped"), alone.watching():
        raise dist.DistBackendError("NCCL communicator was aborted")
    with pytest.raises(TrainError, match="--resume"), alone.watching():
        raise RuntimeError("[gloo/transport/tcp/pair.cc:561] Connection closed by peer [127.0.0.1]:28850")
    with pytest.raises(RuntimeError, match="shapes"), alone.watching():
        raise RuntimeError("shapes cannot be multiplied")


@pytest.mark.parametrize("asked", ["--use_fsdp", "zero-3.json"])
def test_a_dry_run_is_of_a_whole_model(asked, monkeypatch):
    processes = SimpleNamespace(sharded=True, launch=Launch(asked, sharded=True))
    monkeypatch.setattr(vlm_train.dry_run, "Processes", lambda: processes)
    with pytest.raises(ConfigError, match=f"--dry-run: .*leave out {asked}"):
        vlm_train.dry_run.dry_run(TrainConfig(data="scenes"))
