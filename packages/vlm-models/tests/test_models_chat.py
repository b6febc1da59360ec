"""Every class of the chat family, tiny and random: the steps against the class's own forward pass and generation."""

from types import SimpleNamespace

import pytest
import torch
import transformers
from torch import Tensor

import vlm_models
from vlm_models.families import Chat

IMAGE, END = 60, 1
INDEX = [0, 1, 0]  # the image of each row
WORDS = [[10, 11, 12, 13, 14], [20, 21], [10, 11, 22]]  # what follows the image, and the last two are supervised
TEXT = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "bos_token_id": 0,
    "eos_token_id": END,
    "pad_token_id": 2,
}
MROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}}
SIGLIP = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
SQUARE = {**SIGLIP, "image_size": 16, "patch_size": 4}


def qwen(config_class: type, vision: dict) -> transformers.PreTrainedConfig:
    shape = {"depth": 2, "num_heads": 2, "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2}
    return config_class(
        text_config={**TEXT, **MROPE},
        vision_config={**shape, **vision},
        image_token_id=IMAGE,
        video_token_id=IMAGE + 1,
        vision_start_token_id=IMAGE + 2,
        vision_end_token_id=IMAGE + 3,
    )


def sized(hidden: int) -> dict:
    return {"hidden_size": hidden, "intermediate_size": 48, "out_hidden_size": 32}


def config(name: str) -> transformers.PreTrainedConfig:
    llama, qwen2 = {**TEXT, "model_type": "llama"}, {**TEXT, "model_type": "qwen2"}
    siglip = {**SQUARE, "model_type": "siglip_vision_model", "vision_use_head": False}
    if name == "qwen2_vl":
        return qwen(transformers.Qwen2VLConfig, {"embed_dim": 32, "hidden_size": 32, "mlp_ratio": 2})
    if name == "qwen2_5_vl":
        # windows of two merged patches, and the last layer sees the whole image
        return qwen(transformers.Qwen2_5_VLConfig, {**sized(32), "window_size": 16, "fullatt_block_indexes": [1]})
    if name == "qwen3_vl":
        deep = {"deepstack_visual_indexes": [0, 1], "num_position_embeddings": 16}
        return qwen(transformers.Qwen3VLConfig, {**sized(32), **deep})
    if name in ("smolvlm", "idefics3"):
        kind = transformers.SmolVLMConfig if name == "smolvlm" else transformers.Idefics3Config
        return kind(text_config=llama, vision_config=SQUARE, image_token_id=IMAGE, scale_factor=2, pad_token_id=2)
    if name == "llava_onevision":
        return transformers.LlavaOnevisionConfig(
            text_config=qwen2,
            vision_config=siglip,
            image_token_index=IMAGE,
            video_token_index=IMAGE + 1,
            image_grid_pinpoints=[[16, 16], [16, 32], [32, 16], [32, 32]],
        )
    if name == "gemma3":
        text = {**TEXT, "sliding_window": 6, "query_pre_attn_scalar": 8}
        text["layer_types"] = ["sliding_attention", "full_attention", "sliding_attention"]
        return transformers.Gemma3Config(
            text_config=text, vision_config=siglip, mm_tokens_per_image=4, image_token_index=IMAGE
        )
    return transformers.InternVLConfig(
        text_config=qwen2,
        vision_config={**SIGLIP, "image_size": [16, 16], "patch_size": [4, 4]},
        image_token_id=IMAGE,
    )


NAMES = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "smolvlm", "idefics3", "llava_onevision", "gemma3", "internvl"]


class Tokenizer(SimpleNamespace):
    """What generation asks of a tokenizer."""

    def batch_decode(self, rows: list[list[int]], skip_special_tokens: bool) -> list[str]:
        return [" ".join(map(str, row)) for row in rows]


@pytest.fixture(params=NAMES)
def name(request) -> str:
    return request.param


@pytest.fixture
def vlm(name) -> Chat:
    torch.manual_seed(0)
    model = transformers.AutoModelForImageTextToText.from_config(config(name)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():  # so that nothing is zero or one, and answers differ
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    # An untrained model would also say the placeholders of images.
    never = torch.arange(TEXT["vocab_size"]) >= IMAGE
    model.get_output_embeddings().register_forward_hook(lambda module, args, logits: logits.masked_fill(never, -1e4))
    tokenizer = Tokenizer(eos_token_id=END, pad_token_id=2)
    return Chat(model, SimpleNamespace(tokenizer=tokenizer), name).eval()


def images(name: str) -> list[dict[str, Tensor]]:
    """The image inputs of two images of different sizes, as transformers' classes take them, each with a first axis."""
    torch.manual_seed(1)
    if name.startswith("qwen"):
        grids = [torch.tensor([[1, 4, 6]]), torch.tensor([[1, 4, 4]])]
        patch = 3 * 2 * 4 * 4
        return [
            {"pixel_values": torch.randn(int(grid.prod()), patch).double(), "image_grid_thw": grid} for grid in grids
        ]
    pixels = torch.randn(2, 3, 3, 16, 16).double()  # images, tiles
    if name in ("smolvlm", "idefics3"):
        real = torch.ones(2, 3, 16, 16, dtype=torch.bool)
        real[0, 2, 12:] = False  # an edge that is padding
        pixels[1, 2] = 0.0  # and a tile that is
        return [{"pixel_values": pixels[i : i + 1], "pixel_attention_mask": real[i : i + 1]} for i in (0, 1)]
    if name == "llava_onevision":  # a whole view and one tile, or two beside each other
        sizes = [torch.tensor([[14, 16]]), torch.tensor([[16, 30]])]
        pixels[0, 2] = 0.0
        return [{"pixel_values": pixels[i : i + 1], "image_sizes": sizes[i]} for i in (0, 1)]
    if name == "gemma3":
        return [{"pixel_values": pixels[i, :1]} for i in (0, 1)]
    return [{"pixel_values": pixels[0]}, {"pixel_values": pixels[1, :2]}]


def features_of(vlm: Chat, inputs: dict[str, Tensor]) -> int:
    output = vlm.model.model.get_image_features(**inputs, return_dict=True).pooler_output
    return sum(one.shape[:-1].numel() for one in output)


def batch_of(vlm: Chat, words: list[list[int]] = WORDS) -> dict[str, Tensor]:
    """Padded on the left. The prompt is a token, the image and the first of the words."""
    of_images = images(vlm.name)
    batch = {key: torch.cat([one[key] for one in of_images]) for key in of_images[0]}
    if vlm.name == "internvl":
        batch["image_tiles"] = torch.tensor([3, 2])
    rows = [[5, *[IMAGE] * features_of(vlm, of_images[i]), *its] for i, its in zip(INDEX, words, strict=True)]
    width = max(map(len, rows))
    gaps = [width - len(row) for row in rows]
    batch["input_ids"] = torch.tensor([[2] * gap + row for gap, row in zip(gaps, rows, strict=True)])
    batch["attention_mask"] = torch.tensor([[0] * gap + [1] * (width - gap) for gap in gaps])
    batch["labels"] = batch["input_ids"].clone()
    batch["labels"][:, :-2] = -100
    batch["image_index"] = torch.tensor(INDEX)
    return batch


def plain_row(vlm: Chat, batch: dict[str, Tensor], row: int) -> dict[str, Tensor]:
    """What transformers' own class takes for one row alone, without padding."""
    ids = batch["input_ids"][row, batch["attention_mask"][row].bool()][None]
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **images(vlm.name)[INDEX[row]]}
    if vlm.name.startswith("qwen"):
        inputs["mm_token_type_ids"] = (ids == IMAGE).long()
    if vlm.name == "gemma3":
        inputs["token_type_ids"] = (ids == IMAGE).long()
    return inputs


def gradients(vlm: Chat) -> dict[str, Tensor]:
    found = {key: one.grad.clone() for key, one in vlm.model.named_parameters() if one.grad is not None}
    vlm.zero_grad()
    return found


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Up to float32: transformers computes rotary positions and norms in it, whatever the model's dtype."""
    assert found.keys() == expected.keys()
    largest = max(one.abs().max() for one in expected.values())
    for key, one in expected.items():
        assert (found[key] - one).abs().max() <= 1e-6 * largest, key


def test_loss_and_every_gradient_are_those_of_the_class(vlm):
    batch = batch_of(vlm)
    loss, count = vlm(batch)
    loss.backward()
    found = gradients(vlm)
    expected = 0.0
    for row in range(len(INDEX)):
        logits = vlm.model(**plain_row(vlm, batch, row)).logits[0]
        expected = expected + torch.nn.functional.cross_entropy(
            logits[-3:-1], batch["labels"][row, -2:], reduction="sum"
        )
    expected.backward()
    assert count == 6
    assert loss.item() == pytest.approx(expected.item(), rel=1e-9)
    assert_equal(found, gradients(vlm))


def test_hidden_states_are_those_of_the_class(vlm):
    batch = batch_of(vlm)
    logits = vlm.head(vlm.hidden_states(vlm.encode_images(batch), batch))
    for row in range(len(INDEX)):
        expected = vlm.model(**plain_row(vlm, batch, row)).logits[0]
        torch.testing.assert_close(logits[row, -len(expected) :], expected, rtol=1e-9, atol=1e-9)


def assert_packed_equals_rows(vlm: Chat, batch: dict[str, Tensor]) -> None:
    found = []
    for packs in (vlm.packs, False):
        vlm.packs = packs
        loss, _ = vlm(batch)
        loss.backward()
        found.append((loss.item(), gradients(vlm)))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-9)
    assert_equal(found[0][1], found[1][1])


def test_packed_rows_equal_rows_apart(vlm):
    assert_packed_equals_rows(vlm, batch_of(vlm))


def test_rows_of_several_images_of_none_and_with_words_before_them_are_packed(vlm):
    """Of these rows the last two do not begin alike, so that each has a copy of their image."""
    if not vlm.packs:
        return
    batch = batch_of(vlm)
    first, second = ([IMAGE] * len(one) for one in vlm.encode_images(batch))
    rows = [[5, 6, 7], [5, *second, 8, *first, 9, 10, 11], [*second, *WORDS[0]], [7, *second, *WORDS[1]]]
    ids = [torch.tensor(row) for row in rows]
    batch["input_ids"] = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=2)
    batch["attention_mask"] = (batch["input_ids"] != 2).long()
    batch["labels"] = torch.full_like(batch["input_ids"], -100)
    for row, its in enumerate(ids):
        batch["labels"][row, len(its) - 2 : len(its)] = its[-2:]
    batch["image_index"] = torch.tensor([1, 0, 1, 1])
    assert sorted(vlm.packing(vlm.encode_images(batch), batch).image_index.tolist()) == [0, 1, 1, 1]
    assert_packed_equals_rows(vlm, batch)


@pytest.mark.parametrize("side", ["left", "right"])
def test_positions_are_those_of_the_class(vlm, side):
    if not vlm.name.startswith("qwen"):
        return
    torch.manual_seed(3)
    sizes = torch.tensor([[1, 2, 3], [1, 4, 1], [1, 1, 1], [2, 3, 2]])
    pictures = [[IMAGE] * int(size.prod()) for size in sizes]
    shown = [[1, 0], [], [2], [3, 1, 0], [0]]
    rows = [[token for image in its for token in [5, *pictures[image], 6, 7]] + [8, 9] for its in shown]
    rows[4] = pictures[0]  # and nothing else
    width = max(map(len, rows))
    pads = [[2] * (width - len(row)) for row in rows]
    ids = torch.tensor([pad + row if side == "left" else row + pad for pad, row in zip(pads, rows, strict=True)])
    batch = {"input_ids": ids, "attention_mask": (ids != 2).long(), "image_grid_thw": sizes * torch.tensor([1, 2, 2])}
    batch["image_index"] = torch.tensor([image for its in shown for image in its])
    expected, _ = vlm.model.model.get_rope_index(
        ids,
        mm_token_type_ids=(ids == IMAGE).long(),
        image_grid_thw=batch["image_grid_thw"][batch["image_index"]],
        attention_mask=batch["attention_mask"],
    )
    real = batch["attention_mask"].bool()
    assert torch.equal(vlm._positions(batch)[:, real], expected[:, real])
    words = {**batch, "input_ids": ids[1:2], "attention_mask": real[1:2].long(), "image_index": torch.tensor([]).long()}
    assert torch.equal(vlm._positions(words)[:, real[1:2]], expected[:, 1][:, real[1]])


def test_only_gemma_is_not_packed(vlm):
    assert vlm.packs == (vlm.name != "gemma3")


def test_answers_are_those_of_the_class(vlm):
    batch = batch_of(vlm)
    answers = vlm.generate(batch, max_new_tokens=6)
    for row, answer in enumerate(answers):
        inputs = plain_row(vlm, batch, row)
        options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 2, "eos_token_id": END}
        expected = vlm.model.generate(**inputs, **options)[0, inputs["input_ids"].shape[1] :]
        assert answer.token_ids == expected.tolist()
    assert len({answer.text for answer in answers}) > 1


def test_beams_are_those_of_the_class(vlm):
    batch = batch_of(vlm)
    if vlm.name == "internvl":
        with pytest.raises(vlm_models.ModelError, match="no beams over images cut into tiles"):
            vlm.generate(batch, max_new_tokens=4, num_beams=2)
        return
    answers = vlm.generate(batch, max_new_tokens=4, num_beams=2)
    for row, answer in enumerate(answers):
        inputs = plain_row(vlm, batch, row)
        options = {"max_new_tokens": 4, "num_beams": 2, "do_sample": False, "pad_token_id": 2, "eos_token_id": END}
        expected = vlm.model.generate(**inputs, **options)[0, inputs["input_ids"].shape[1] :]
        assert answer.token_ids == expected.tolist()


def test_an_images_features_are_its_own_and_depend_on_the_vision_part_alone(vlm):
    features = vlm.encode_images(batch_of(vlm))
    for one, inputs in zip(features, images(vlm.name), strict=True):
        output = vlm.model.model.get_image_features(**inputs, return_dict=True)
        expected = torch.cat(list(output.pooler_output))
        torch.testing.assert_close(one[:, : expected.shape[1]], expected, rtol=1e-9, atol=1e-9)
    torch.cat(features).square().sum().backward()
    vision = tuple(f"{part}." for part in vlm.vision_parts)
    for key, parameter in vlm.model.named_parameters():
        assert parameter.grad is None or f"{key}.".startswith(vision), key
    parts = tuple(f"{part}." for part in vlm.vision_parts + vlm.language_parts)
    head = {id(parameter) for parameter in vlm.head.parameters()}
    assert all(f"{key}.".startswith(parts) or id(one) in head for key, one in vlm.model.named_parameters())


def test_targets_are_in_their_part(vlm):
    language, vision = vlm.targets("language"), vlm.targets("vision")
    assert sum(target.endswith("q_proj") for target in language) == TEXT["num_hidden_layers"]
    assert vision and not set(language) & set(vision)
    assert not any(target.endswith("lm_head") for target in vlm.targets("all"))


def test_too_few_placeholders_are_told(vlm):
    batch = batch_of(vlm)
    place = (batch["input_ids"][0] == IMAGE).nonzero()[0]
    batch["input_ids"][0, place] = 5
    with pytest.raises(vlm_models.ModelError, match="image placeholders for"):
        vlm.hidden_states(vlm.encode_images(batch), batch)
