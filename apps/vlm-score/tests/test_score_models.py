"""Metrics that need a model, with tiny random ones: what the command gives is what the functions give."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizer,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
    CLIPTokenizer,
)
from typer.testing import CliRunner

import vlm_eval
from vlm_score import cli

SHAPE = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
CAPTIONS = {"a.png": ("a red dog", ["the red dog", "a dog"]), "b.png": ("two cats sit", ["two cats"])}
PREDICTIONS, REFERENCES = map(list, zip(*CAPTIONS.values(), strict=True))


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("clip"))
    letters = sorted(ByteLevel.alphabet())
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    ends = {"bos_token_id": len(words) - 2, "eos_token_id": len(words) - 1}
    config = CLIPConfig(
        text_config={**SHAPE, **ends, "vocab_size": len(words), "max_position_embeddings": 40},
        vision_config={**SHAPE, "image_size": 16, "patch_size": 8},
        projection_dim=8,
        initializer_factor=5.0,
    )
    torch.manual_seed(1)
    CLIPModel(config).save_pretrained(folder)
    tokenizer = CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=40)
    images = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    CLIPProcessor(images, tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("bert"))
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "dog", "the", "two", "cats", "sit"]
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=len(words), max_position_embeddings=16, **SHAPE)).save_pretrained(folder)
    BertTokenizer(vocab={word: i for i, word in enumerate(words)}).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = [
        json.dumps({"id": name, "image": name, "prediction": prediction, "references": references}) + "\n"
        for name, (prediction, references) in CAPTIONS.items()
    ]
    (tmp_path / "captions.jsonl").write_text("".join(lines), encoding="utf-8")
    for name, color in zip(CAPTIONS, ("red", "blue"), strict=True):
        Image.new("RGB", (16, 16), color).save(tmp_path / name)
    return tmp_path


def values(*options):
    result = CliRunner().invoke(cli.app, ["captions.jsonl", "--out", "out", *options])
    assert result.exit_code == 0, result.stderr or result.exception
    scores = json.loads(Path("out/scores.json").read_text(encoding="utf-8"))["runs"][0]["scores"]
    return {name: score["value"] for name, score in scores.items()}


@pytest.mark.filterwarnings("ignore:CIDEr")
def test_captions_are_scored_by_bleu_rouge_and_cider_unless_others_are_named(folder):
    functions = {name: getattr(vlm_eval, name) for name in ("bleu", "rouge", "cider")}
    assert values() == {name: function(PREDICTIONS, REFERENCES).value for name, function in functions.items()}


def test_clip_scores_look_at_the_pictures(folder, clip):
    images = [name for name in CAPTIONS]
    expected = {
        "clip_score": vlm_eval.clip_score(PREDICTIONS, images, clip).value,
        "ref_clip_score": vlm_eval.ref_clip_score(PREDICTIONS, REFERENCES, images, clip).value,
    }
    assert values("--metrics", "clip_score,ref_clip_score", "--clip", clip) == pytest.approx(expected, abs=1e-6)
    assert expected["clip_score"] > 0


@pytest.mark.filterwarnings("ignore:.*Fréchet")
def test_scores_of_an_encoder(folder, encoder):
    expected = {
        "bert_score": vlm_eval.bert_score(PREDICTIONS, REFERENCES, model=encoder).value,
        "frechet_distance": vlm_eval.frechet_distance(PREDICTIONS, REFERENCES, encoder=encoder).value,
    }
    found = values("--metrics", "bert_score,frechet_distance", "--encoder", encoder)
    assert found == pytest.approx(expected, abs=1e-6)


def test_a_picture_that_is_not_there_is_named(folder, clip):
    (folder / "b.png").unlink()
    result = CliRunner().invoke(cli.app, ["captions.jsonl", "--out", "out", "--metrics", "clip_score", "--clip", clip])
    assert result.exit_code == 2
    assert "b.png: no image b.png; say with --image-dir where the images are" in result.stderr
