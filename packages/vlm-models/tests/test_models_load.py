"""Loading: names that work, names that do not, devices, number formats, quantization."""

import json

import pytest
import torch

import vlm_models
from vlm_models.tiny import TINY, tiny_folder


@pytest.mark.parametrize("name", TINY)
def test_tiny_checkpoints_are_small_and_have_a_card(name):
    folder = tiny_folder(name)
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 4_000_000
    assert (folder / "README.md").read_text().startswith(f"# {name}\n")
    assert not list(folder.glob("*.bin"))


@pytest.mark.parametrize("name", TINY)
def test_saved_and_loaded_again_it_is_the_same_model(name, tmp_path):
    vlm = vlm_models.load(name)
    vlm.save(str(tmp_path / "copy"))
    again = vlm_models.load(str(tmp_path / "copy"))
    assert again.family == vlm.family
    assert type(again.processor) is type(vlm.processor)
    for (key, one), other in zip(vlm.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(one, other), key
    text = "what color is the circle?"
    assert again.processor.tokenizer(text).input_ids == vlm.processor.tokenizer(text).input_ids


def test_auto_is_float32_on_a_cpu():
    assert vlm_models.load("tiny-git", device="cpu").model.dtype == torch.float32
    assert vlm_models.load("tiny-git", dtype="float64").model.dtype == torch.float64


def test_a_misspelt_tiny_name_is_told():
    with pytest.raises(vlm_models.ModelError, match="no model 'tiny-gti'.*did you mean tiny-git"):
        vlm_models.load("tiny-gti")


def test_a_folder_without_a_model_is_told(tmp_path):
    with pytest.raises(vlm_models.ModelError, match="a folder without config.json"):
        vlm_models.load(str(tmp_path))


def test_a_folder_that_is_not_there_is_told():
    with pytest.raises(vlm_models.ModelError, match=r"no model './nowhere'"):
        vlm_models.load("./nowhere")


def test_another_kind_of_model_is_told(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(vlm_models.ModelError, match="is a 'bert' model; supported: git, blip-2"):
        vlm_models.load(str(tmp_path))


def test_a_hub_that_cannot_be_reached_is_told_in_one_line(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(vlm_models.ModelError, match="cannot load 'nobody/no-such-model'.*tiny-git") as error:
        vlm_models.load("nobody/no-such-model")
    assert "\n" not in str(error.value)


def test_weights_that_are_cut_off_are_told(tmp_path):
    vlm_models.load("tiny-git").save(str(tmp_path / "cut"))
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(vlm_models.ModelError, match="cannot load"):
        vlm_models.load(str(tmp_path / "cut"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "toaster"}, "device 'toaster' is not available"),
        ({"dtype": "float8"}, "unknown dtype 'float8'; known: auto, float64"),
        ({"quantization": "nf3"}, "unknown quantization 'nf3'; known: none, nf4, int8"),
    ],
)
def test_unknown_options_are_told(options, message):
    with pytest.raises(vlm_models.ModelError, match=message):
        vlm_models.load("tiny-git", **options)


@pytest.mark.parametrize("name", TINY)
def test_nf4_quantizes_the_language_part_alone(name):
    vlm = vlm_models.load(name, quantization="nf4", device="cpu")
    kinds = {target: type(vlm.model.get_submodule(target)).__name__ for target in vlm.targets("all")}
    language = set(vlm.targets("language"))
    # bitsandbytes replaces nn.Linear and GPT-2's Conv1D alike
    assert {kinds[target] for target in language} == {"Linear4bit"}
    assert {kinds[target] for target in kinds if target not in language} == {"Linear"}
    assert type(vlm.head).__name__ == "Linear"


def test_blip2_with_another_language_model_is_refused(tmp_path):
    from transformers import Blip2Config, Blip2ForConditionalGeneration, T5Config

    small = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = T5Config(vocab_size=64, d_model=32, d_kv=16, d_ff=32, num_layers=1, num_heads=2).to_dict()
    config = Blip2Config(vision_config=small, qformer_config=small, text_config=text, num_query_tokens=4)
    Blip2ForConditionalGeneration(config).save_pretrained(tmp_path)
    vlm_models.load("tiny-blip2").processor.save_pretrained(tmp_path)
    with pytest.raises(vlm_models.ModelError, match="BLIP-2 with a t5 language model is not supported"):
        vlm_models.load(str(tmp_path))
