"""Every name that `--method` takes makes a method for every part of a model."""

import pytest

import peft_methods as pm
import vlm_models
from vlm_train.config import METHODS, ConfigError, TrainConfig
from vlm_train.methods import method_of


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


def test_expressions_and_names(vlm):
    method = method_of(TrainConfig(method="bitfit", targets=r"re:git\.encoder\.layer\.0\..*"), vlm)
    assert {name.split(".")[3] for name in method.parts(vlm.model)[""].adapter_parameters()} == {"0"}
    assert method_of(TrainConfig(targets="query,value", rank=3), vlm) == pm.LoRA(3, 32.0, targets=["query", "value"])
    with pytest.raises(ConfigError, match="--targets 'query'.*--method norm takes language, vision, all"):
        method_of(TrainConfig(method="norm", targets="query"), vlm)
