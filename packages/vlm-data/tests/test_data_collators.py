"""Collators on stand-ins for tokenizer and image processor: what goes where, and what is told when it does not fit."""

from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from vlm_data import DataError, collator


class Words:
    """A tokenizer of whole words; ids are given out as words come."""

    pad_token_id, cls_token_id, sep_token_id, bos_token_id, eos_token_id = 0, 1, 2, 3, 4

    def __init__(self):
        self.ids = {"<image>": 9}

    def __call__(self, text, add_special_tokens):
        assert not add_special_tokens  # special tokens are the collator's business
        return SimpleNamespace(input_ids=[self.ids.setdefault(word, 10 + len(self.ids)) for word in text.split()])

    def convert_tokens_to_ids(self, token):
        return self.ids[token]


class Pixels:
    """An image processor that counts the images it is given; the pixel is the image's red."""

    merge_size = 2

    def __init__(self):
        self.seen = 0

    def __call__(self, images, return_tensors):
        self.seen += len(images)
        reds = torch.tensor([float(image.getpixel((0, 0))[0]) for image in images])
        return {
            "pixel_values": reds.repeat_interleave(16)[:, None],
            "image_grid_thw": torch.tensor([[1, 4, 4]] * len(images)),
        }


class Pictures(Pixels):
    def __call__(self, images, return_tensors):
        return {"pixel_values": super().__call__(images, return_tensors)["pixel_values"][::16, :, None]}


def processor(**more):
    return SimpleNamespace(tokenizer=Words(), image_processor=Pictures(), **more)


@pytest.fixture
def rows(tmp_path):
    def row(color, prompt, *references):
        path = tmp_path / f"{color}.png"
        Image.new("RGB", (2, 2), color).save(path)
        image = {"path": str(path), "bytes": None}
        return {"id": color, "image": image, "prompt": prompt, "references": list(references), "source": f"{color}:1"}

    return [
        row("red", "what color is it?", "red"),
        row("red", None, "a red thing"),
        row("blue", "what?", "blue", "navy", "navy"),
    ]


FAMILIES = [
    ("git", {}, 1, 2),
    ("blip2", {"num_query_tokens": 3, "image_token": "<image>"}, 3, 4),
    ("encoder_decoder", {}, 3, 4),
]


@pytest.mark.parametrize(("family", "more", "start", "end"), FAMILIES)
def test_labels_are_the_answer_and_its_end(rows, family, more, start, end):
    collate = collator(processor(**more), family)
    batch = collate(rows)
    assert start in batch["input_ids"][0, :4]
    for row, ids, mask, labels in zip(rows, batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True):
        answer = {"red": ["red"], "a red thing": ["a", "red", "thing"], "blue": ["navy"]}[row["references"][0]]
        words = {index: word for word, index in collate.tokenizer.ids.items()}
        supervised = labels[labels != -100].tolist()
        assert [words[index] for index in supervised[:-1]] == answer  # of three answers, the one given twice
        assert supervised[-1] == end
        assert ids[mask.bool()][-len(supervised) :].tolist() == supervised
        assert mask.sum() == len(collate.prompt_ids(row["prompt"], {})) + len(supervised)


@pytest.mark.parametrize(("family", "more", "start", "end"), FAMILIES)
def test_an_image_is_processed_once_however_many_rows_show_it(rows, family, more, start, end):
    collate = collator(processor(**more), family)
    batch = collate(rows)
    assert batch["image_index"].tolist() == [0, 0, 1]
    assert collate.processor.image_processor.seen == len(batch["pixel_values"]) == 2
    assert batch["pixel_values"].flatten().tolist() == [255.0, 0.0]


def test_prompts_are_padded_on_the_left_and_hold_no_answer(rows):
    collate = collator(processor(), "git")
    batch = collate.prompts(rows)
    assert "labels" not in batch
    assert batch["attention_mask"].tolist() == [[1] * 5, [0] * 4 + [1], [0] * 3 + [1] * 2]
    assert batch["input_ids"][1].tolist() == [0, 0, 0, 0, 1]


def test_padding_side(rows):
    right = collator(processor(), "git")(rows)
    left = collator(processor(), "git", padding_side="left")(rows)
    for name in ("input_ids", "labels"):
        for one, other, mask in zip(left[name], right[name], right["attention_mask"], strict=True):
            assert one[-mask.sum() :].tolist() == other[: mask.sum()].tolist()


def test_prepared_images_need_no_decoding(rows):
    collate = collator(processor(), "git")
    features = [torch.ones(2, 4), torch.ones(2, 4), torch.zeros(2, 4)]
    batch = collate(rows, [{"features": one} for one in features])
    assert "pixel_values" not in batch and collate.processor.image_processor.seen == 0
    assert [one.sum().item() for one in batch["features"]] == [8, 0]


def test_a_row_that_is_too_long_is_named(rows):
    collate = collator(processor(), "git", max_length=4)
    with pytest.raises(DataError, match="red:1: 7 tokens, the model takes 4"):
        collate(rows)


def test_a_row_without_answer_is_named(rows):
    with pytest.raises(DataError, match="red:1: no answer or caption"):
        collator(processor(), "git")([{**rows[0], "references": []}])


def test_blip2_without_query_tokens_is_refused(rows):
    with pytest.raises(DataError, match="num_query_tokens"):
        collator(processor(num_query_tokens=None, image_token="<image>"), "blip2")(rows)


def test_unknown_family():
    with pytest.raises(DataError, match="unknown model family 'clip'; known: git, blip2"):
        collator(processor(), "clip")


class Chatty(SimpleNamespace):
    """A processor whose template marks turns with [ and ]."""

    def apply_chat_template(self, messages, tokenize, add_generation_prompt=False):
        text = ""
        for message in messages:
            parts = " ".join("<image>" if part["type"] == "image" else part["text"] for part in message["content"])
            text += f"[ {message['role']} {parts} ] "
        return text + ("[ assistant " if add_generation_prompt else "")


@pytest.fixture
def chat():
    tokenizer = Words()
    tokenizer.eos_token_id = tokenizer("]", add_special_tokens=False).input_ids[0]
    return collator(Chatty(tokenizer=tokenizer, image_processor=Pixels(), image_token="<image>"), "chat")


def test_chat_expands_the_image_and_supervises_the_assistants_turn(rows, chat):
    batch = chat(rows)
    words = {index: word for word, index in chat.tokenizer.ids.items()}
    text = " ".join(words[index] for index in batch["input_ids"][0][batch["attention_mask"][0].bool()].tolist())
    assert text == "[ user <image> <image> <image> <image> what color is it? ] [ assistant red ]"
    labels = [words[index] for index in batch["labels"][0].tolist() if index != -100]
    assert labels == ["red", "]"]
    assert batch["image_grid_thw"].tolist() == [[1, 4, 4]] * 2 and len(batch["pixel_values"]) == 32


def test_chat_asks_for_a_description_where_there_is_no_prompt(rows, chat):
    words = {index: word for word, index in chat.tokenizer.ids.items()}
    batch = chat.prompts(rows[1:2])
    words = {index: word for word, index in chat.tokenizer.ids.items()}
    assert "Describe the image. ] [ assistant" in " ".join(words[index] for index in batch["input_ids"][0].tolist())


def test_chat_refuses_a_prompt_that_holds_a_placeholder(rows, chat):
    with pytest.raises(DataError, match="holds the image placeholder <image>"):
        chat([{**rows[0], "prompt": "what is <image> ?"}])
