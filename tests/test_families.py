"""Every family, on its tiny trained checkpoint: exact losses, gradients, padding and generation."""

import pytest
import torch
import torch.nn.functional as F

import vlm_data
import vlm_models
from vlm_data.sources import scenes


def gradients(vlm: vlm_models.VLM) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in vlm.named_parameters() if p.grad is not None}


def test_loss_is_that_of_transformers(vlm, collate, scene_rows):
    """The oracle runs transformers' own forward pass on pixels repeated row by row."""
    batch = collate(scene_rows[:8])
    index, labels = batch["image_index"], batch["labels"]
    pixels = batch["pixel_values"]
    common = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    if vlm.family == "git" or vlm.family == "blip2":
        expected = vlm.model(**common, pixel_values=pixels[index], labels=labels).loss
    elif vlm.family == "chat":
        grids = batch["image_grid_thw"]
        patches = pixels.split(grids.prod(-1).tolist())
        expected = vlm.model(
            **common,
            pixel_values=torch.cat([patches[i] for i in index]),
            image_grid_thw=grids[index],
            mm_token_type_ids=(batch["input_ids"] == vlm.model.config.image_token_id).long(),
            labels=labels,
        ).loss
    else:  # its own loss shifts labels to make the decoder's input, which would lose the question
        logits = vlm.model(
            pixel_values=pixels[index],
            decoder_input_ids=batch["input_ids"],
            decoder_attention_mask=batch["attention_mask"],
        ).logits
        expected = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    loss, count = vlm(batch)
    assert count == (labels != -100).sum()
    # transformers computes the loss from logits in float32
    assert (loss / count).item() == pytest.approx(expected.item(), rel=1e-5, abs=1e-6)


def test_vit_gpt2_loss_of_captions_is_that_of_transformers(scene_rows):
    vlm = vlm_models.load("tiny-vit-gpt2", dtype="float64")
    collate = vlm_data.collator(vlm.processor, vlm.family)
    batch = collate([row for row in scene_rows if row["prompt"] is None])
    labels = batch["labels"][:, 1:]  # without the start token, which transformers puts there itself
    expected = vlm.model(pixel_values=batch["pixel_values"], labels=labels).loss
    loss, count = vlm(batch)
    assert (loss / count).item() == pytest.approx(expected.item(), rel=1e-9)


def test_eight_rows_equal_two_times_four(vlm, collate, scene_rows):
    rows = scene_rows[:4] + scene_rows[-4:]
    loss, count = vlm(collate(rows))
    (loss / count).backward()
    whole = gradients(vlm)
    vlm.zero_grad()
    for part in (rows[:4], rows[4:]):
        part_loss, _ = vlm(collate(part))
        (part_loss / count).backward()
    accumulated = gradients(vlm)
    assert whole.keys() == accumulated.keys()
    for key, gradient in whole.items():
        assert torch.allclose(accumulated[key], gradient, rtol=1e-9, atol=1e-9), key


def test_padding_side_changes_nothing(vlm, scene_rows):
    left, right = (
        vlm(vlm_data.collator(vlm.processor, vlm.family, padding_side=side)(scene_rows[:8]))[0]
        for side in ("left", "right")
    )
    alone = sum(vlm(vlm_data.collator(vlm.processor, vlm.family)([row]))[0] for row in scene_rows[:8])
    assert left.item() == pytest.approx(right.item(), rel=1e-9)
    assert alone.item() == pytest.approx(right.item(), rel=1e-9)


def test_another_image_gives_another_loss(vlm, collate, scene_rows):
    first, other = scene_rows[0], next(row for row in scene_rows if row["image"] != scene_rows[0]["image"])
    swapped = {**first, "image": other["image"]}
    assert abs(vlm(collate([first]))[0].item() - vlm(collate([swapped]))[0].item()) > 1e-3


def test_cached_features_equal_pixels(vlm, collate, scene_rows):
    batch = collate(scene_rows[:8])
    expected, _ = vlm(batch)
    cached = {key: value for key, value in batch.items() if key != "pixel_values"}
    cached["features"] = vlm.encode_images(batch)
    assert vlm(cached)[0].item() == expected.item()


def test_rows_of_one_image_share_its_encoding(vlm, collate, scene_rows):
    same = [row for row in scene_rows if row["image"] == scene_rows[0]["image"]]
    batch = collate(same)
    assert len(vlm.encode_images(batch)) == 1 < len(same)


def test_frozen_vision_keeps_no_graph_and_trained_vision_does(vlm, collate, scene_rows):
    batch = collate(scene_rows[:2])
    assert vlm.trains_vision and vlm.encode_images(batch)[0].requires_grad
    for name, parameter in vlm.model.named_parameters():
        parameter.requires_grad_(name.startswith(vlm.language_parts))
    assert not vlm.trains_vision and not vlm.encode_images(batch)[0].requires_grad


def test_only_the_answer_and_its_end_are_supervised(vlm, collate, scene_rows):
    batch = collate(scene_rows)
    tokenizer = vlm.processor.tokenizer
    ends = {tokenizer.eos_token_id, tokenizer.sep_token_id}
    for row, ids, labels in zip(scene_rows, batch["input_ids"], batch["labels"], strict=True):
        supervised = labels[labels != -100]
        assert tokenizer.decode(supervised[:-1]).strip() == row["references"][0]
        assert supervised[-1].item() in ends
        assert (ids[labels != -100] == supervised).all()


def test_a_batch_generates_what_each_row_generates_alone(vlm, collate, scene_rows):
    rows = scene_rows[:10]  # prompts of different lengths
    together = [answer.text for answer in vlm.generate(collate.prompts(rows), max_new_tokens=12)]
    alone = [vlm.generate(collate.prompts([row]), max_new_tokens=12)[0].text for row in rows]
    assert together == alone


def test_generation_is_the_greedy_continuation(vlm, collate, scene_rows):
    """The oracle grows the text token by token, without a cache, through `hidden_states`."""
    row = scene_rows[0]
    batch = collate.prompts([row])
    ids, length = batch["input_ids"], batch["input_ids"].shape[1]
    features = vlm.encode_images(batch)
    tokenizer = vlm.processor.tokenizer
    for _ in range(12):
        grown = {**batch, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
        following = vlm.head(vlm.hidden_states(features, grown)[:, -1]).argmax(-1, keepdim=True)
        if following.item() in (tokenizer.eos_token_id, tokenizer.sep_token_id):
            break
        ids = torch.cat([ids, following], dim=1)
    expected = tokenizer.decode(ids[0, length:], skip_special_tokens=True).strip()
    assert [answer.text for answer in vlm.generate(batch, max_new_tokens=12)] == [expected]


def test_beams_find_a_text(vlm, collate, scene_rows):
    answers = vlm.generate(collate.prompts(scene_rows[:4]), max_new_tokens=12, num_beams=3)
    assert len(answers) == 4 and all(answer.text for answer in answers)


def test_targets_are_the_linear_layers_of_their_part(vlm):
    language, vision, everything = (set(vlm.targets(part)) for part in ("language", "vision", "all"))
    assert language and vision and everything == language | vision and not language & vision
    modules = dict(vlm.model.named_modules())
    assert vlm.head not in [modules[name] for name in everything]
    with pytest.raises(ValueError, match="unknown part 'ears'"):
        vlm.targets("ears")


def test_every_target_gets_a_gradient(vlm, collate, scene_rows):
    loss, _ = vlm(collate(scene_rows[:8]))
    loss.backward()
    modules = dict(vlm.model.named_modules())
    for target in vlm.targets("all"):
        assert modules[target].weight.grad.abs().sum() > 0, target


def test_half_precision_runs(name, scene_rows):
    vlm = vlm_models.load(name, dtype="bfloat16")
    collate = vlm_data.collator(vlm.processor, vlm.family)
    loss, count = vlm(collate(scene_rows[:8]))
    exact = vlm_models.load(name, dtype="float32")
    expected, _ = exact(collate(scene_rows[:8]))
    assert loss.dtype == torch.float32
    assert (loss / count).item() == pytest.approx((expected / count).item(), abs=0.15)


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_gradients_pass_a_quantized_language_part_also_after_evaluation(name, quantization, scene_rows):
    """The gradient with respect to the image's features has passed every layer."""
    vlm = vlm_models.load(name, quantization=quantization, device="cpu")
    collate = vlm_data.collator(vlm.processor, vlm.family)
    vlm.generate(collate.prompts(scene_rows[:2]), max_new_tokens=2)
    vlm.train().requires_grad_(False)
    batch = collate(scene_rows[:2])
    features = [one.requires_grad_() for one in vlm.encode_images(batch)]
    loss, count = vlm.loss(vlm.hidden_states(features, batch), batch)
    (loss / count).backward()
    exact = vlm_models.load(name, device="cpu")
    expected, _ = exact(collate(scene_rows[:2]))
    assert all(one.grad.abs().sum() > 0 for one in features)
    assert (loss / count).item() == pytest.approx((expected / count).item(), rel=0.3, abs=0.2)


def test_the_tiny_checkpoint_knows_its_scenes(name):
    """The card says how well on 1,000 scenes; here 100 others."""
    vlm = vlm_models.load(name)
    collate = vlm_data.collator(vlm.processor, vlm.family)
    rows = list(scenes.read("another", 100, seed=5))
    right = {True: [], False: []}
    for start in range(0, len(rows), 200):
        part = rows[start : start + 200]
        for row, answer in zip(part, vlm.generate(collate.prompts(part), max_new_tokens=16), strict=True):
            right[row["prompt"] is not None].append(answer.text == row["references"][0])
    assert sum(right[True]) / len(right[True]) >= 0.87
    assert sum(right[False]) / len(right[False]) >= 0.55
