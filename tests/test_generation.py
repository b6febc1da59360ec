"""Answers decoded through shared prompts, against transformers' `generate` and the model without a cache."""

import contextlib
import json

import pytest
import torch
from PIL import Image
from subjects import METHODS, Subject, move
from torch import Tensor
from typer.testing import CliRunner

import peft_methods as pm
import vlm_data
import vlm_infer.cli
import vlm_models
from vlm_models.generation import answered

LONGEST = 12


@pytest.fixture
def single(name) -> vlm_models.VLM:
    return vlm_models.load(name, device="cpu", dtype="float32")


def scenes(images: int) -> list[dict]:
    """All rows, captions and questions, of so many images."""
    rows = vlm_data.open("scenes", split="test", seed=0, size=images).to_list()
    return rows[::2] + rows[1::2]  # rows of an image apart from each other


def prompts(vlm: vlm_models.VLM, rows: list[dict]) -> dict[str, Tensor]:
    return vlm_data.collator(vlm.processor, vlm.family, vlm.max_length).prompts(rows)


def of_transformers(vlm: vlm_models.VLM, rows: list[dict], **options) -> list[str]:
    """What the model's own `generate` answers, each row alone, pixels in, prompt cut off by its length."""
    texts = []
    for row in rows:
        batch = prompts(vlm, [row])
        inputs = {key: batch[key] for key in batch if key not in ("image_index", "input_ids", "attention_mask")}
        text = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
        ends = vlm.processor.tokenizer.eos_token_id, vlm.processor.tokenizer.sep_token_id
        if vlm.family == "chat":
            text["mm_token_type_ids"] = (batch["input_ids"] == vlm.model.config.image_token_id).long()
        if vlm.family == "encoder_decoder":
            text = {"decoder_input_ids": batch["input_ids"]}
        ids = vlm.model.generate(
            **inputs,
            **text,
            max_new_tokens=LONGEST,
            do_sample=False,
            eos_token_id=[end for end in ends if end is not None],
            pad_token_id=vlm.processor.tokenizer.pad_token_id,
            **options,
        )[0, batch["input_ids"].shape[1] :]
        texts.append(vlm.processor.tokenizer.decode(ids, skip_special_tokens=True).strip())
    return texts


def texts_of(answers: list[vlm_models.Answer]) -> list[str]:
    return [answer.text for answer in answers]


@pytest.mark.parametrize("beams", [1, 3])
def test_texts_are_those_of_transformers(single, beams):
    rows = scenes(4)
    answers = single.generate(prompts(single, rows), max_new_tokens=LONGEST, num_beams=beams)
    assert texts_of(answers) == of_transformers(single, rows, num_beams=beams)


def test_what_the_rows_of_an_image_begin_with_is_computed_once(name):
    """Counted in images that pass the encoder and in tokens of which keys are made in the first layer."""
    vlm = vlm_models.load(name, device="cpu")
    batch = prompts(vlm, scenes(3))
    rows, width = batch["input_ids"].shape
    keys_of = {"git": "layer.0.attention.self.key", "encoder_decoder": "h.0.crossattention.c_attn"}
    key = keys_of.get(vlm.family, "layers.0.self_attn.k_proj")
    (module,) = (m for n, m in vlm.model.named_modules() if n.endswith(key) and n.startswith(vlm.language_parts))
    tokens, images = [], []
    module.register_forward_pre_hook(lambda module, args: tokens.append(args[0].shape[:-1].numel()))
    encode = vlm._encode
    vlm._encode = lambda batch: images.append(encode(batch)) or images[-1]
    vlm.generate(batch, max_new_tokens=1)
    features = images[0]
    assert [len(one) for one in images] == [3] and rows > 12
    if vlm.family == "encoder_decoder":
        assert tokens == [3 * len(features[0])]
    else:
        in_text = 0 if vlm.family == "git" else len(features[0])
        beside = len(features[0]) - in_text
        assert tokens[0] < 3 * (beside + width) and tokens[1] <= rows * (width - in_text - 1) and len(tokens) == 2


@pytest.mark.parametrize("side", ["left", "right"])
def test_prompts_may_be_padded_on_either_side(vlm, scene_rows, side):
    batch = dict(prompts(vlm, scene_rows[:10]))
    expected = vlm.generate(batch, max_new_tokens=LONGEST)
    if side == "right":
        order = batch["attention_mask"].argsort(dim=1, descending=True, stable=True)
        for key in ("input_ids", "attention_mask"):
            batch[key] = batch[key].gather(1, order)
    found = vlm.generate(batch, max_new_tokens=LONGEST)
    assert texts_of(found) == texts_of(expected)
    assert [answer.finish_reason for answer in found] == [answer.finish_reason for answer in expected]


@pytest.mark.parametrize("beams", [1, 2])
def test_log_probabilities_are_those_of_one_pass_without_a_cache(vlm, scene_rows, beams):
    for row in scene_rows[:4]:
        batch = prompts(vlm, [row])
        answer = vlm.generate({**prompts(vlm, scene_rows[:4])}, LONGEST, beams)[scene_rows.index(row)]
        whole, _ = answered(batch, [answer.token_ids])
        with torch.no_grad():
            logits = vlm.head(vlm.hidden_states(vlm.encode_images(batch), whole)).log_softmax(-1)[0]
        start = batch["input_ids"].shape[1] - 1
        expected = [logits[start + k, token].item() for k, token in enumerate(answer.token_ids)]
        assert answer.token_logprobs == pytest.approx(expected, abs=1e-5)  # Qwen2-VL's norms are float32


def test_an_answer_stops_at_an_end_token_or_at_its_length(vlm, scene_rows):
    batch = prompts(vlm, scene_rows[:10])
    answers = vlm.generate(batch, max_new_tokens=3)
    whole = vlm.generate(batch, max_new_tokens=LONGEST)
    assert {answer.finish_reason for answer in answers} == {"stop", "length"}
    for short, long in zip(answers, whole, strict=True):
        assert short.token_ids == long.token_ids[:3] and len(short.token_ids) == len(short.token_logprobs)
        assert (short.finish_reason == "stop") == (short.token_ids[-1] in vlm.end_ids)
        assert not set(short.token_ids[:-1]) & vlm.end_ids


def test_a_sampled_answer_depends_on_its_seed_and_on_no_other_row(vlm, scene_rows):
    rows = scene_rows[:6]
    seeds = [5, 3, 5, 8, 9, 1]

    def sample(which: list[int]) -> list[vlm_models.Answer]:
        batch = prompts(vlm, [rows[i] for i in which])
        return vlm.generate(batch, LONGEST, temperature=1.5, seed=[seeds[i] for i in which])

    together = sample([0, 1, 2, 3, 4, 5])
    assert [answer.token_ids for answer in sample([4, 0])] == [together[4].token_ids, together[0].token_ids]
    assert sample([0, 1, 2, 3, 4, 5]) == together
    batch = prompts(vlm, [rows[0]] * 20)
    many = [vlm.generate(batch, LONGEST, temperature=2.0, seed=seed) for seed in (0, 1)]
    assert len({tuple(answer.token_ids) for answer in many[0]}) > 1 and many[0] != many[1]


def test_words_are_drawn_from_the_nucleus_as_often_as_they_are_likely(vlm, scene_rows):
    batch = prompts(vlm, [scene_rows[0]] * 3000)
    temperature, top_p = 3.0, 0.7
    one = prompts(vlm, [scene_rows[0]])
    with torch.no_grad():
        logits = vlm.head(vlm.hidden_states(vlm.encode_images(one), one)[0, -1])
    kept: dict[int, float] = {}
    probabilities = (logits / temperature).softmax(-1)
    for word in probabilities.argsort(descending=True).tolist():
        if sum(kept.values()) >= top_p:
            break
        kept[word] = probabilities[word].item()
    drawn = [answer.token_ids[0] for answer in vlm.generate(batch, 1, temperature=temperature, top_p=top_p)]
    assert set(drawn) <= kept.keys()
    for word, probability in kept.items():
        expected = probability / sum(kept.values())
        assert drawn.count(word) / len(drawn) == pytest.approx(expected, abs=4 * (expected / len(drawn)) ** 0.5 + 1e-3)


def test_options_that_do_not_go_together_and_prompts_without_room(vlm, scene_rows):
    batch = prompts(vlm, scene_rows[:2])
    with pytest.raises(vlm_models.ModelError, match="not both"):
        vlm.generate(batch, num_beams=2, temperature=1.0)
    with pytest.raises(vlm_models.ModelError, match="top_p"):
        vlm.generate(batch, temperature=1.0, top_p=0.0)
    with pytest.raises(vlm_models.ModelError, match="3 seeds for 2 rows"):
        vlm.generate(batch, temperature=1.0, seed=[1, 2, 3])
    longer = {**scene_rows[0], "prompt": "is it red? " * 200}
    with pytest.raises(vlm_models.ModelError, match="leaves no room"):
        vlm.generate(vlm_data.collator(vlm.processor, vlm.family).prompts([longer]))


@pytest.mark.parametrize("method", ["lora", "prefix", "shifted prefix", "parallel"])
def test_with_methods_attached_the_texts_are_those_of_rows_alone(name, method):
    """Alone, a row shares nothing; the oracle of one row is `hidden_states` without a cache, in float64."""
    subject = Subject(name, "float64")
    vlm = subject.vlm
    chosen = pm.Prefix(length=3, shift_positions=True) if method == "shifted prefix" else None
    attachment = pm.attach(subject.model, chosen or METHODS[method](subject))
    torch.manual_seed(1)
    move(attachment.parameters())
    rows = scenes(2)[:6]
    answers = vlm.generate(prompts(vlm, rows), LONGEST)
    for row, answer in zip(rows, answers, strict=True):
        batch = prompts(vlm, [row])
        whole, places = answered(batch, [answer.token_ids])
        with torch.no_grad():
            hidden = vlm.hidden_states(vlm.encode_images(batch), whole)
        logprobs = vlm.head(hidden[0, places[0]]).log_softmax(-1)
        assert logprobs.argmax(-1).tolist() == answer.token_ids
        assert answer.token_logprobs == pytest.approx(logprobs.amax(-1).tolist(), abs=1e-5)


def test_in_bfloat16_answers_are_as_likely(name):
    """Rounding may turn a close call, never one that is not close."""
    vlm, exact = (vlm_models.load(name, device="cpu", dtype=dtype) for dtype in ("bfloat16", "float32"))
    rows = scenes(2)
    found, expected = (one.generate(prompts(one, rows), LONGEST) for one in (vlm, exact))
    same = [one.text == other.text for one, other in zip(found, expected, strict=True)]
    assert sum(same) >= 0.8 * len(same)


def test_rows_of_an_image_are_batched_together(scene_rows):
    images = [row["image"]["bytes"] for row in scene_rows]
    lengths = [len(row["prompt"] or "") for row in scene_rows]
    batches = vlm_models.together(images, lengths, 5)
    flat = [row for batch in batches for row in batch]
    assert sorted(flat) == list(range(len(scene_rows))) and {len(batch) for batch in batches[:-1]} == {5}
    order = [images[row] for row in flat]
    assert sum(one != other for one, other in zip(order, order[1:], strict=False)) == len(set(images)) - 1
    assert vlm_models.together(["a", "b", "a"], [9, 5, 1], 2) == [[1, 2], [0]]


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_packing_left_out_leaves_decoding_to_transformers(vlm, scene_rows, monkeypatch, temperature):
    batch = prompts(vlm, scene_rows[:6])
    options = {"max_new_tokens": LONGEST, "temperature": temperature, "seed": 3}
    expected = vlm.generate(batch, **options)
    monkeypatch.setattr(vlm, "packs", False)
    found = vlm.generate(batch, **options)
    for one, other in zip(found, expected, strict=True):
        assert (one.text, one.finish_reason, one.token_ids) == (other.text, other.finish_reason, other.token_ids)
        assert one.token_logprobs == pytest.approx(other.token_logprobs, abs=1e-5)


def test_vlm_infer_draws_where_each_text_looks(name, user_folder, tmp_path):
    """With a prefix attached, and rows of one image apart from each other: the texts are in the table's order."""
    files, run = user_folder("looks", 3), tmp_path / "run"
    vlm = vlm_models.load(name, device="cpu")
    pm.attach(vlm.model, pm.Prefix(length=2)).save(run / "adapter")
    config = {"model": name, "quantization": "none", "dtype": "float32"}
    (run / "run.json").write_text(json.dumps({"config": config, "status": "done"}))
    lines = (files / "questions.csv").read_text().splitlines()
    (files / "mixed.csv").write_text("\n".join([lines[0], *lines[1::2], *lines[2::2]]))
    options = ["--run", run, "--table", files / "mixed.csv", "--image-dir", files / "photos", "--out", "texts.jsonl"]
    with contextlib.chdir(tmp_path):
        result = CliRunner().invoke(
            vlm_infer.cli.app, [*map(str, options), "--attention", "looks/here", "--batch-size", "4", "--device", "cpu"]
        )
    assert result.exit_code == 0, result.output
    records = [json.loads(line) for line in (tmp_path / "texts.jsonl").read_text().splitlines()]
    assert [record["prompt"] for record in records] == [line.split(",")[1] for line in [*lines[1::2], *lines[2::2]]]
    attachment = pm.load(vlm.model, run / "adapter")
    for record in records[:3]:
        row = {"image": {"path": record["image"], "bytes": None}, "prompt": record["prompt"]}
        assert record["text"] == vlm.generate(prompts(vlm, [row]), max_new_tokens=48)[0].text
    attachment.detach()
    drawings = sorted((tmp_path / "looks" / "here").iterdir())
    assert len(drawings) == len(records) and drawings[0].name == f"00001-{records[0]['image'].split('/')[-1]}"
    widths = {
        len(record["text"].split()): Image.open(file).width for record, file in zip(records, drawings, strict=True)
    }
    assert all(width == 8 + 232 * min(6, words + 1) for words, width in widths.items())
