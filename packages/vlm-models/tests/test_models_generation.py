"""Decoding through shared prompts and a cache, against growing each row alone without one."""

import pytest
import torch
from torch import Tensor

import vlm_models
from vlm_models.sampling import sampler

SIZES = [(2, 3), (4, 2)]  # Qwen2-VL's images, in merged patches
IMAGES = [0, 1, 0, 1, 0, 1]
TEXTS = [[20, 21, 22, 23], [30, 31], [20, 21], [30, 32, 33], [20, 21, 22, 24, 25], [30, 31]]


@pytest.fixture(params=vlm_models.TINY)
def vlm(request) -> vlm_models.VLM:
    return vlm_models.load(request.param, device="cpu", dtype="float64")


@torch.no_grad()
def grown(vlm: vlm_models.VLM, batch: dict, row: int, length: int) -> tuple[list[int], list[float]]:
    """Greedy tokens of one row and their log-probabilities, all of it computed anew for each token."""
    image = batch["image_index"][row : row + 1]
    ids = batch["input_ids"][row, batch["attention_mask"][row].bool()][None]
    features, logprobs, tokens = vlm.encode_images(batch), [], []
    while len(tokens) < length and not set(tokens) & vlm.end_ids:
        whole = {**batch, "input_ids": ids, "attention_mask": torch.ones_like(ids), "image_index": image}
        logprob, token = vlm.head(vlm.hidden_states(features, whole)[0, -1]).log_softmax(-1).max(-1)
        tokens.append(token.item())
        logprobs.append(logprob.item())
        ids = torch.cat([ids, token[None, None]], dim=1)
    return tokens, logprobs


def check(vlm: vlm_models.VLM, batch: dict, length: int = 6) -> None:
    answers = vlm.generate(batch, max_new_tokens=length)
    for row, answer in enumerate(answers):
        tokens, logprobs = grown(vlm, batch, row, length)
        assert answer.token_ids == tokens
        assert answer.token_logprobs == pytest.approx(logprobs, abs=1e-5)  # Qwen2-VL's norms are float32
        assert answer.finish_reason == ("stop" if tokens[-1] in vlm.end_ids else "length")


def test_a_prompt_that_begins_another_and_one_given_twice(vlm, prompts):
    check(vlm, prompts(vlm, IMAGES, TEXTS, SIZES))


def test_prompts_that_are_all_the_same(vlm, prompts):
    check(vlm, prompts(vlm, [0, 0, 0], [[20, 21, 22]] * 3, SIZES))


def test_rows_of_images_of_their_own_and_prompts_of_one_image_that_share_nothing(vlm, prompts):
    check(vlm, prompts(vlm, [0, 1], [[20, 21, 22], [30]], SIZES))
    check(vlm, prompts(vlm, [0, 0], [[20, 21, 22], [30]], SIZES))


def test_text_before_the_image_that_differs_is_not_shared(prompts):
    vlm = vlm_models.load("tiny-qwen2-vl", device="cpu", dtype="float64")
    batch = prompts(vlm, [0, 0, 1], [[20, 21], [20, 22], [30, 31]], [(2, 3), (2, 3)])
    width = batch["input_ids"].shape[1]
    ids = torch.cat([torch.tensor([[40], [41], [42]]), batch["input_ids"]], dim=1)
    ahead = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    assert batch["attention_mask"].all() and width == 8
    check(vlm, {**batch, **ahead})


def test_features_may_come_instead_of_pixels_and_end_tokens_are_end_tokens(vlm, prompts):
    batch = prompts(vlm, IMAGES, TEXTS, SIZES)
    expected = vlm.generate(batch, max_new_tokens=4)
    cached = {key: value for key, value in batch.items() if key != "pixel_values"}
    with torch.no_grad():
        cached["features"] = vlm.encode_images(batch)
    assert vlm.generate(cached, max_new_tokens=4) == expected
    assert vlm.processor.tokenizer.eos_token_id in vlm.end_ids or vlm.family == "git"


def test_a_text_ends_where_the_positions_do(vlm, prompts):
    room = vlm.max_length
    beside = {"blip2": 16, "chat": 6}.get(vlm.family, 0)
    texts = [[20] * (room - beside - 2), [20, 21]]
    answers = vlm.generate(prompts(vlm, [0, 0], texts, SIZES), max_new_tokens=4, temperature=50.0, seed=1)
    assert len(answers[0].token_ids) <= 2
    with pytest.raises(vlm_models.ModelError, match="leaves no room"):
        vlm.generate(prompts(vlm, [0], [[20] * (room - beside)], SIZES))


def test_training_mode_is_given_back_and_nothing_is_kept_for_a_gradient(vlm, prompts):
    vlm.train()
    outputs: list[Tensor] = []
    hook = vlm.head.register_forward_hook(lambda module, args, output: outputs.append(output))
    vlm.generate(prompts(vlm, [0], [[20]], SIZES), max_new_tokens=1)
    hook.remove()
    assert vlm.training and not outputs[0].requires_grad


@pytest.mark.parametrize("top_p", [1.0, 0.6])
def test_words_are_drawn_as_often_as_they_are_likely(top_p):
    probabilities = torch.tensor([0.1, 0.4, 0.0, 0.3, 0.2])
    choose = sampler(20_000, 1.0, top_p, 0)
    drawn = choose(probabilities.log().expand(20_000, -1), list(range(20_000))).bincount(minlength=5) / 20_000
    expected = probabilities if top_p == 1.0 else torch.tensor([0.0, 4 / 7, 0.0, 3 / 7, 0.0])
    torch.testing.assert_close(drawn, expected, atol=0.015, rtol=0)
    assert (drawn[expected == 0] == 0).all()
