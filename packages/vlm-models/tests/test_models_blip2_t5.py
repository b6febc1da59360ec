"""BLIP-2 with T5, tiny and random: prompts in the encoder, answers in the decoder, against transformers' own class."""

from types import SimpleNamespace

import pytest
import torch
import transformers
from torch import Tensor

from vlm_models.families import Blip2Seq2Seq

IMAGE, QUERIES, END, PAD = 60, 4, 1, 0
INDEX = [0, 1, 0]
PROMPTS = [[10, 11, 12, END], [20, END], [10, 11, 22, 23, 24, END]]
ANSWERS = [[30, 31, END], [40, END], [33, END]]


class Tokenizer(SimpleNamespace):
    def batch_decode(self, rows: list[list[int]], skip_special_tokens: bool) -> list[str]:
        return [" ".join(map(str, row)) for row in rows]


@pytest.fixture(params=[True, False], ids=["scaled", "unscaled"])
def vlm(request) -> Blip2Seq2Seq:
    small = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = transformers.T5Config(
        vocab_size=64,
        d_model=24,
        d_kv=8,
        d_ff=32,
        num_layers=2,
        num_heads=3,
        tie_word_embeddings=request.param,
        pad_token_id=PAD,
        eos_token_id=END,
        decoder_start_token_id=PAD,
    )
    config = transformers.Blip2Config(
        vision_config={**small, "image_size": 16, "patch_size": 8},
        qformer_config={**small, "encoder_hidden_size": 32},
        text_config=text.to_dict(),
        num_query_tokens=QUERIES,
        image_token_index=IMAGE,
        tie_word_embeddings=request.param,
    )
    torch.manual_seed(0)
    model = transformers.Blip2ForConditionalGeneration(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    tokenizer = Tokenizer(eos_token_id=END, pad_token_id=PAD)
    return Blip2Seq2Seq(model, SimpleNamespace(tokenizer=tokenizer, num_query_tokens=QUERIES), "blip2-t5").eval()


def padded(rows: list[list[int]], value: int, side: str) -> Tensor:
    width = max(map(len, rows))
    gaps = [[value] * (width - len(row)) for row in rows]
    return torch.tensor([gap + row if side == "left" else row + gap for row, gap in zip(rows, gaps, strict=True)])


def pixels() -> Tensor:
    return torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def batch_of(answers: list[list[int]], side: str) -> dict[str, Tensor]:
    before = [[IMAGE] * QUERIES + prompt for prompt in PROMPTS]
    rows = [prompt + answer for prompt, answer in zip(before, answers, strict=True)]
    labels = [[-100] * len(prompt) + answer for prompt, answer in zip(before, answers, strict=True)]
    return {
        "input_ids": padded(rows, PAD, side),
        "attention_mask": padded([[1] * len(row) for row in rows], 0, side),
        "labels": padded(labels, -100, side),
        "image_index": torch.tensor(INDEX),
        "pixel_values": pixels(),
    }


def prompt_row(row: int) -> dict[str, Tensor]:
    ids = torch.tensor([[IMAGE] * QUERIES + PROMPTS[row]])
    image = INDEX[row]
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels()[image : image + 1]}


def test_both_ways_to_scale_are_tested(vlm, request):
    """T5 scales the decoder's outputs where its embeddings were trained tied to its head."""
    assert vlm.model.language_model.config.scale_decoder_outputs == ("unscaled" not in request.node.name)


@pytest.mark.parametrize("side", ["left", "right"])
def test_loss_and_every_gradient_are_those_of_the_class(vlm, side):
    loss, count = vlm(batch_of(ANSWERS, side))
    loss.backward()
    found = {key: one.grad.clone() for key, one in vlm.model.named_parameters() if one.grad is not None}
    vlm.zero_grad()
    expected = 0.0
    for row, answer in enumerate(ANSWERS):
        expected = expected + vlm.model(**prompt_row(row), labels=torch.tensor([answer])).loss * len(answer)
    expected.backward()
    assert count == sum(map(len, ANSWERS))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-9)
    of_class = {key: one.grad for key, one in vlm.model.named_parameters() if one.grad is not None}
    assert found.keys() == of_class.keys()
    for key, one in of_class.items():
        # T5's norms are computed in float32
        assert (found[key] - one).abs().max() <= 1e-6 * max(1.0, float(one.abs().max())), key


@pytest.mark.parametrize("beams", [1, 3])
def test_answers_are_those_of_the_class(vlm, beams):
    batch = batch_of([[], [], []], "left")
    del batch["labels"]
    answers = vlm.generate(batch, max_new_tokens=6, num_beams=beams)
    for row, answer in enumerate(answers):
        options = {"max_new_tokens": 6, "num_beams": beams, "do_sample": False}
        expected = vlm.model.generate(**prompt_row(row), **options)[0, 1:].tolist()
        assert answer.token_ids == expected
        logits = vlm.model(**prompt_row(row), labels=torch.tensor([expected])).logits[0].log_softmax(-1)
        logprobs = logits.gather(1, torch.tensor(expected)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(answer.token_logprobs).double(), logprobs, rtol=1e-5, atol=1e-5)
    assert len({answer.text for answer in answers}) > 1


def test_targets_are_in_encoder_and_decoder(vlm):
    language = vlm.targets("language")
    assert {target.split(".")[1] for target in language} == {"encoder", "decoder"}
    assert not any("lm_head" in target for target in language)
    assert vlm.max_length is None
