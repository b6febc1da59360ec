"""Attention maps against the weights that transformers returns with `output_attentions=True`, and drawings of them."""

import numpy
import pytest
import torch
from PIL import Image
from torch import Tensor

import vlm_models
from vlm_models.attention_maps import words_of

SIZES = [(2, 3), (4, 2)]  # Qwen2-VL's images, in merged patches
TEXTS = [[20, 21, 22, 23], [30, 31], [20, 21, 40]]
IMAGES = [0, 1, 0]


@pytest.fixture(params=vlm_models.TINY)
def vlm(request) -> vlm_models.VLM:
    return vlm_models.load(request.param, device="cpu")


def weights(output_of: list[Tensor]) -> Tensor:
    """Mean over layers and heads of the attentions [rows, heads, queries, keys] of each layer."""
    return torch.stack(list(output_of)).mean((0, 2))


def of_transformers(vlm: vlm_models.VLM, batch: dict, answer: vlm_models.Answer, row: int) -> Tensor:
    """The map [tokens, height, width] of one row, from the plain model run on that row alone."""
    real = batch["attention_mask"][row].bool()
    prompt = batch["input_ids"][row, real].tolist()
    ids = torch.tensor([prompt + answer.token_ids])
    image = IMAGES[row]
    said = slice(len(prompt) - 1, len(prompt) - 1 + len(answer.token_ids))
    plain, pixels = vlm.model, batch["pixel_values"][image : image + 1]
    if vlm.family != "git":
        plain.set_attn_implementation("eager")
    options = {"output_attentions": True, "return_dict": True}
    if vlm.family == "encoder_decoder":
        crossing = plain(pixel_values=pixels, decoder_input_ids=ids, **options).cross_attentions
        return weights(crossing)[0, said, 1:].unflatten(-1, (8, 8))
    if vlm.family == "git":
        attention = weights(plain(input_ids=ids, pixel_values=pixels, **options).attentions)
        images = attention.shape[-1] - len(ids[0])
        return attention[0, images:][said, 1:images].unflatten(-1, (6, 6))
    if vlm.family == "blip2":
        output = plain(input_ids=ids, pixel_values=pixels, **options)
        queries = weights(output.language_model_outputs.attentions)[0, said, :16]
        seen = plain.vision_model(pixels).last_hidden_state
        crossing = plain.qformer(
            query_embeds=plain.query_tokens, encoder_hidden_states=seen, **options
        ).cross_attentions
        return (queries @ weights(crossing)[0])[:, 1:].unflatten(-1, (8, 8))
    grids = batch["image_grid_thw"]
    output = plain(
        input_ids=ids,
        pixel_values=batch["pixel_values"].split(grids.prod(-1).tolist())[image],
        image_grid_thw=grids[image : image + 1],
        mm_token_type_ids=(ids == plain.config.image_token_id).long(),
        **options,
    )
    height, width = SIZES[image]
    return weights(output.attentions)[0, said, : height * width].unflatten(-1, (height, width))


def test_maps_are_the_attention_that_transformers_computes(vlm, prompts):
    batch = prompts(vlm, IMAGES, TEXTS, SIZES)
    answers = vlm.generate(batch, max_new_tokens=5, temperature=2.0, seed=3)
    assert len({len(answer.token_ids) for answer in answers}) > 1 or vlm.family != "chat"
    maps = vlm_models.attention_maps(vlm, batch, answers)
    for row, answer in enumerate(answers):
        expected = of_transformers(vlm, batch, answer, row)
        assert maps[row].shape == expected.shape
        torch.testing.assert_close(maps[row], expected, rtol=1e-4, atol=1e-6)
        assert maps[row].sum((1, 2)).min() > 0 and maps[row].sum((1, 2)).max() < 1


def test_the_model_is_left_as_it_was(vlm, prompts):
    batch = prompts(vlm, IMAGES, TEXTS, SIZES)
    answers = vlm.generate(batch, max_new_tokens=3)
    configs = {id(m.config): m.config for m in vlm.model.modules() if hasattr(m, "config")}
    before = {key: config._attn_implementation for key, config in configs.items()}
    hooks = sum(len(module._forward_hooks) for module in vlm.modules())
    vlm.train()
    vlm_models.attention_maps(vlm, batch, answers)
    assert vlm.training
    assert {key: config._attn_implementation for key, config in configs.items()} == before
    assert sum(len(module._forward_hooks) for module in vlm.modules()) == hooks
    with pytest.raises(vlm_models.ModelError, match="need the pixels"):
        cached = {key: value for key, value in batch.items() if key != "pixel_values"}
        vlm_models.attention_maps(vlm, {**cached, "features": []}, answers)


def test_words_own_the_tokens_that_spell_them(vlm):
    tokenizer = vlm.processor.tokenizer
    ids = tokenizer("what color is the zebrafish?", add_special_tokens=False).input_ids
    answer = vlm_models.Answer("", [*ids, min(vlm.end_ids)], [0.0] * (len(ids) + 1), "stop")
    found = words_of(vlm, answer)
    text = tokenizer.decode(ids, skip_special_tokens=True)
    assert [word for word, _ in found] == text.split() and len(found) < len(ids)
    spelling = [token for token, its_id in enumerate(ids) if tokenizer.decode([its_id]).strip()]
    assert [token for _, tokens in found for token in tokens] == spelling
    for word, tokens in found:
        assert tokenizer.decode([ids[token] for token in tokens]).strip().replace(" ", "").replace("##", "") == word


def test_a_drawing_has_a_panel_for_each_word_and_glows_where_the_map_is_high():
    maps = torch.zeros(7, 2, 3)
    maps[:, 0, 0] = 0.5
    sheet = vlm_models.draw_attention(Image.new("L", (60, 40), 128), ["one", "two" * 40, "three", *"four"], maps)
    pixels = numpy.asarray(sheet).astype(int)
    assert sheet.width < 6.5 * 232 and sheet.height > 2 * 149
    panel = pixels[8 : 8 + 149, 8 + 232 : 8 + 232 + 224]
    assert (panel[20, 30] > panel[120, 200] + 40).any()  # above left it glows, below right it is dark
    plain = pixels[8 : 8 + 149, 8 : 8 + 224]
    assert (plain == 128).all()
