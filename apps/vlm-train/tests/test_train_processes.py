"""What `accelerate launch` can ask for by the environment it gives; what processes do is in tests/ of the whole."""

from types import SimpleNamespace

import pytest
import torch.distributed as dist

import vlm_models
import vlm_train.dry_run
from vlm_train.engine.memory import too_large
from vlm_train.errors import ConfigError, TrainError
from vlm_train.options.config import AUTO, TrainConfig
from vlm_train.processes import Processes
from vlm_train.run import run
from vlm_train.sharding import check_sharded, layers_of


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "--use_deepspeed: .*--use_fsdp --fsdp_version 2"),
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
    ],
)
def test_options_that_do_not_go_with_sharding(options, said):
    with pytest.raises(ConfigError, match=said):
        check_sharded(TrainConfig(data="scenes", **options))
    check_sharded(TrainConfig(data="scenes", method="full", targets="vision"))


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


def test_a_dry_run_is_of_a_whole_model(monkeypatch):
    monkeypatch.setattr(vlm_train.dry_run, "Processes", lambda: SimpleNamespace(sharded=True))
    with pytest.raises(ConfigError, match="--dry-run: .*leave out --use_fsdp"):
        vlm_train.dry_run.dry_run(TrainConfig(data="scenes"))
