"""Loading: names that work, names that do not, devices, number formats, quantization."""

import importlib.util
import json
import pickle
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError
from safetensors.torch import load_file, save_file

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
        ({"quantization": "nf3"}, "unknown quantization 'nf3'; known: none, nf4, int8, auto"),
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


def test_an_8_bit_model_says_nothing_of_its_layers(prompts, caplog):
    vlm = vlm_models.load("tiny-git", "int8", device="cpu", dtype="bfloat16")
    vlm.generate(prompts(vlm, [0], [[5, 6]], []), max_new_tokens=2)
    assert not [record for record in caplog.records if record.name.startswith("bitsandbytes")]


@pytest.fixture
def saved(tmp_path) -> Path:
    """tiny-git in a folder."""
    vlm_models.load("tiny-git").save(str(tmp_path / "saved"))
    return tmp_path / "saved"


def test_missing_weights_are_told(saved):
    weights = load_file(saved / "model.safetensors")
    del weights["git.encoder.layer.0.attention.self.query.weight"]
    save_file(weights, saved / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(vlm_models.ModelError, match="1 weights are not in it, git.encoder.layer.0.attention") as error:
        vlm_models.load(str(saved))
    assert "\n" not in str(error.value)


def test_a_missing_weights_file_is_told(saved):
    (saved / "model.safetensors").unlink()
    with pytest.raises(vlm_models.ModelError, match=r"no file named model\.safetensors.*tiny-git"):
        vlm_models.load(str(saved))


def test_a_missing_tokenizer_is_told(saved):
    for file in (*saved.glob("token*"), *saved.glob("vocab*"), *saved.glob("processor*"), *saved.glob("special*")):
        file.unlink()
    with pytest.raises(vlm_models.ModelError, match="cannot load") as error:
        vlm_models.load(str(saved))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", TINY)
def test_a_tokenizer_without_its_words_is_told(name, tmp_path):
    shutil.copytree(tiny_folder(name), tmp_path / "copy")
    (tmp_path / "copy" / "tokenizer.json").unlink()
    with pytest.raises(vlm_models.ModelError, match=r"its tokenizer has no words; tokenizer\.json is missing"):
        vlm_models.load(str(tmp_path / "copy"))


def test_weights_of_another_shape_are_told(saved):
    config = json.loads((saved / "config.json").read_text())
    config["intermediate_size"] += 8
    (saved / "config.json").write_text(json.dumps(config))
    with pytest.raises(vlm_models.ModelError, match="cannot load") as error:
        vlm_models.load(str(saved))
    assert "\n" not in str(error.value)


def test_a_damaged_file_says_to_fetch_it_again(saved):
    weights = saved / "model.safetensors"
    weights.write_bytes(b"\xff" * 500)
    with pytest.raises(vlm_models.ModelError, match="a weights file is damaged .* download or save it again"):
        vlm_models.load(str(saved))


def test_tensors_in_a_pickle_are_read(saved):
    expected = load_file(saved / "model.safetensors")
    (saved / "model.safetensors").unlink()
    torch.save(expected, saved / "pytorch_model.bin")
    weights = vlm_models.load(str(saved)).model.state_dict()
    assert expected and all(torch.equal(weights[key], one) for key, one in expected.items())


def test_safetensors_go_before_a_pickle(saved):
    torch.save({"output.weight": torch.zeros(1)}, saved / "pytorch_model.bin")
    assert vlm_models.load(str(saved)).model.output.weight.abs().sum() > 0


class Touch:
    """Pickled, it makes a file when it is read."""

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


def test_code_in_a_pickle_does_not_run(saved):
    (saved / "model.safetensors").unlink()
    torch.save({"output.weight": Touch(saved / "ran")}, saved / "pytorch_model.bin")
    with pytest.raises(vlm_models.ModelError, match="a pickle that holds more than tensors"):
        vlm_models.load(str(saved))
    assert not (saved / "ran").exists()
    pickle.loads(pickle.dumps(Touch(saved / "ran")))  # as a careless reader would
    assert (saved / "ran").exists()


RESPONSE = SimpleNamespace(headers={}, status_code=403, request=None)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (GatedRepoError, "it is gated; accept its terms at https://huggingface.co/owner/model"),
        (RepositoryNotFoundError, "no such model, or it is private"),
        (RevisionNotFoundError, "not in this revision; see https://huggingface.co/owner/model/commits"),
        (torch.OutOfMemoryError, "memory does not suffice; use quantization='nf4'"),
    ],
)
def test_what_the_hub_answers_is_told(monkeypatch, error, message):
    asked = {}

    def refuse(place, **options):
        asked.update(options, place=place)
        try:
            raise (
                error("first line\nsecond", response=RESPONSE) if error is not torch.OutOfMemoryError else error("oom")
            )
        except Exception as cause:
            raise OSError("wrapped\nin lines") from cause

    monkeypatch.setattr(sys.modules["vlm_models.load"].AutoConfig, "from_pretrained", refuse)
    with pytest.raises(vlm_models.ModelError, match=message) as told:
        vlm_models.load("owner/model", revision="v2")
    assert "\n" not in str(told.value)
    assert asked == {"place": "owner/model", "revision": "v2", "trust_remote_code": False}


def test_code_that_comes_with_a_model_does_not_run_unasked(saved):
    config = json.loads((saved / "config.json").read_text())
    config["model_type"] = "mine"
    config["auto_map"] = {"AutoConfig": "mine.Mine"}
    (saved / "config.json").write_text(json.dumps(config))
    (saved / "mine.py").write_text(f"open({str(saved / 'ran')!r}, 'w')\n")
    with pytest.raises(vlm_models.ModelError, match="cannot load"):
        vlm_models.load(str(saved))
    assert not (saved / "ran").exists()


def test_quantization_without_bitsandbytes_is_told(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "bitsandbytes" else find(name))
    with pytest.raises(vlm_models.ModelError, match="'nf4' needs bitsandbytes; install it or use quantization='none'"):
        vlm_models.plan("tiny-git", "nf4", device="cpu")


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_saved_quantized_it_is_the_same_model(name, quantization, prompts, tmp_path):
    vlm = vlm_models.load(name, quantization, device="cpu")
    vlm.save(str(tmp_path))
    again = vlm_models.load(str(tmp_path), device="cpu")
    assert f"in {quantization} beside float32 (as it was saved)" in str(vlm_models.plan(str(tmp_path), device="cpu"))
    batch = prompts(vlm, [0, 1], [[20, 21, 22], [23, 24]], [(2, 2), (2, 2)])
    logits = [one.head(one.hidden_states(one.encode_images(batch), batch)) for one in (vlm, again)]
    assert torch.equal(*logits)
    kinds = [{key: type(module).__name__ for key, module in one.model.named_modules()} for one in (vlm, again)]
    assert kinds[0] == kinds[1]
    with pytest.raises(vlm_models.ModelError, match=f"was saved in {quantization}"):
        vlm_models.load(str(tmp_path), "int8" if quantization == "nf4" else "nf4", device="cpu")


def test_a_blip2_checkpoint_from_before_placeholders_is_completed(tmp_path, prompts):
    whole = vlm_models.load("tiny-blip2", device="cpu")
    whole.save(str(tmp_path))
    for file, key in (("config.json", "image_token_index"), ("processor_config.json", "num_query_tokens")):
        content = json.loads((tmp_path / file).read_text())
        del content[key]
        (tmp_path / file).write_text(json.dumps(content))
    vlm = vlm_models.load(str(tmp_path), device="cpu")
    assert vlm.notes == [
        f"the processor lacks num_query_tokens; set to the model's {whole.model.config.num_query_tokens}",
        f"the configuration lacks image_token_index; set to {whole.model.config.image_token_id}",
    ]
    assert vlm.processor.num_query_tokens == whole.processor.num_query_tokens
    batch = prompts(whole, [0], [[20, 21, 22]], [])
    one, other = (each.hidden_states(each.encode_images(batch), batch) for each in (whole, vlm))
    assert torch.equal(one, other)
    vlm.save(str(tmp_path / "again"))
    assert vlm_models.load(str(tmp_path / "again"), device="cpu").notes == []


def test_blip2_with_t5_keeps_a_head_of_its_own(tmp_path):
    """Flan-T5's head is not its embedding, though transformers' configuration of T5 says so."""
    from transformers import Blip2Config, Blip2ForConditionalGeneration, T5Config

    small = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = T5Config(vocab_size=1200, d_model=32, d_kv=16, d_ff=32, num_layers=1, num_heads=2, tie_word_embeddings=False)
    processor = vlm_models.load("tiny-blip2").processor
    placeholder = processor.tokenizer.convert_tokens_to_ids(str(processor.image_token))
    config = Blip2Config(
        vision_config={**small, "image_size": 32},
        qformer_config=small,
        text_config={**text.to_dict(), "tie_word_embeddings": False},
        num_query_tokens=4,
        image_token_index=placeholder,
        tie_word_embeddings=False,
    )
    model = Blip2ForConditionalGeneration(config)
    model.language_model.lm_head.weight = torch.nn.Parameter(torch.randn(1200, 32))
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    vlm = vlm_models.load(str(tmp_path), device="cpu")
    assert type(vlm).__name__ == "Blip2Seq2Seq" and vlm.family == "blip2"
    assert torch.equal(vlm.head.weight, model.language_model.lm_head.weight)
    assert torch.equal(vlm.model.get_input_embeddings().weight, model.language_model.shared.weight)
    assert not vlm.model.language_model.config.scale_decoder_outputs
