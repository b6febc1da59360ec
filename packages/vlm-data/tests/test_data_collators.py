"""Collators on stand-ins for tokenizer and image processor: what goes where, and what is told when it does not fit."""

import pickle
from types import SimpleNamespace

import datasets
import pytest
import torch
from PIL import Image

from vlm_data import FEATURES, DataError, collator, fit


class Words:
    """A tokenizer of whole words; ids are given out as words come."""

    pad_token_id, cls_token_id, sep_token_id, bos_token_id, eos_token_id = 0, 1, 2, 3, 4
    eos_token = "</s>"

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

    def get_number_of_image_patches(self, height, width, more):
        return 16

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


def test_an_answer_is_drawn_by_frequency_from_seed_row_and_epoch(rows):
    row = {**rows[2], "references": ["blue", *["navy"] * 3]}
    collate = collator(processor(), "git", answer_choice="sample", seed=1)

    def drawn(row, epoch, collate=collate):
        token = collate([row], epoch=epoch)["labels"][0, -2].item()
        return next(word for word, index in collate.tokenizer.ids.items() if index == token)

    answers = [drawn(row, epoch) for epoch in range(300)]
    assert 45 <= answers.count("blue") <= 105  # a quarter of 300; four standard deviations are 30
    again = collator(collate.processor, "git", answer_choice="sample", seed=1)
    assert [drawn(row, epoch, again) for epoch in range(20)] == answers[:20]
    others = [[drawn({**row, "id": id}, epoch) for epoch in range(20)] for id in ("a", "b")]
    assert others[0] != others[1] != answers[:20]
    assert {drawn(row, epoch, collator(collate.processor, "git")) for epoch in range(20)} == {"navy"}
    with pytest.raises(DataError, match="unknown answer_choice 'all'; known: frequent, sample"):
        collator(processor(), "git", answer_choice="all")


def test_an_answer_without_tokens_is_named(rows):
    with pytest.raises(DataError, match="red:1: its answer has no tokens"):
        collator(processor(), "git")([{**rows[0], "references": ["  "]}])


def test_padding_is_told(rows):
    batch = collator(processor(), "git")(rows)
    assert batch["padding"] == pytest.approx(1 - (7 + 5 + 4) / 21)


def test_a_conversation_is_for_chat_models(rows):
    def turns(*roles):
        return [{"role": role, "text": "x", "loss": role == "assistant"} for role in roles]

    plain = {**rows[0], "turns": turns("user", "assistant"), "images": [rows[0]["image"]]}
    assert (
        collator(processor(), "git")([plain])["labels"].tolist()
        == collator(processor(), "git")(rows[:1])["labels"].tolist()
    )
    message = "red:1: this model takes one question .* 3 turns, a system message among them, with 1 image"
    with pytest.raises(DataError, match=message):
        collator(processor(), "git")([{**plain, "turns": turns("system", "user", "assistant")}])
    with pytest.raises(DataError, match=r"of 2 turns with 2 image\(s\); train a chat model on it"):
        collator(processor(), "git")([{**plain, "images": [rows[0]["image"], rows[2]["image"]]}])
    plain["turns"][1]["loss"] = False
    with pytest.raises(DataError, match="no turn of it is to be trained on"):
        collator(processor(), "git")([plain])


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
    tokenizer.eos_token = "]"
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


@pytest.fixture
def conversation(rows):
    said = [
        ("system", "be brief", False),
        ("user", "first <image> then <image> which is red?", False),
        ("assistant", "the first", True),
        ("user", "why?", False),
        ("assistant", "so", False),
        ("user", "and <image> now?", False),
        ("assistant", "none", True),
    ]
    turns = [dict(zip(("role", "text", "loss"), one, strict=True)) for one in said]
    return {**rows[0], "turns": turns, "images": [rows[0]["image"], rows[2]["image"], rows[0]["image"]]}


def test_chat_supervises_the_turns_with_loss_and_shows_images_where_their_tags_are(rows, chat, conversation):
    batch = chat([conversation, rows[0]])
    words = {index: word for word, index in chat.tokenizer.ids.items()}
    said = [words[index] for index in batch["input_ids"][0].tolist()]
    shown = "<image> <image> <image> <image>"
    assert " ".join(said) == (
        f"[ system be brief ] [ user first {shown} then {shown} which is red? ] [ assistant the first ] "
        f"[ user why? ] [ assistant so ] [ user and {shown} now? ] [ assistant none ]"
    )
    assert [words[index] for index in batch["labels"][0].tolist() if index != -100] == [
        "the",
        "first",
        "]",
        "none",
        "]",
    ]
    assert batch["image_index"].tolist() == [0, 1, 2, 3]  # no image is shared where a row has several
    assert batch["pixel_values"][::16, 0].tolist() == [255.0, 0.0, 255.0, 255.0]
    prompt = chat.prompts([conversation])
    assert " ".join(words[index] for index in prompt["input_ids"][0].tolist()) == (
        f"[ system be brief ] [ user first {shown} then {shown} which is red? ] [ assistant"
    )
    assert prompt["image_index"].tolist() == [0, 1]


def test_chat_goes_to_another_process(rows, chat, conversation):
    expected = chat([conversation, rows[0]])
    again = pickle.loads(pickle.dumps(chat))([conversation, rows[0]])
    assert all(torch.equal(again[name], expected[name]) for name in ("input_ids", "labels", "pixel_values"))


def test_chat_refuses_a_conversation_that_does_not_fit_together(chat, conversation):
    with pytest.raises(DataError, match="red:1: 3 <image> tags for 2 images"):
        chat([{**conversation, "images": conversation["images"][:2]}])
    silent = [{**turn, "loss": False} for turn in conversation["turns"]]
    with pytest.raises(DataError, match="red:1: no turn of it is to be trained on"):
        chat([{**conversation, "turns": silent}])


def test_fit_keeps_the_rows_that_the_model_takes_and_tells_their_lengths(rows, chat, tmp_path):
    table = datasets.Dataset.from_list([*rows, {**rows[0], "source": "gone:1"}], features=FEATURES)
    (tmp_path / "red.png").unlink()
    rejected, calls = [], []
    good, lengths = fit(table, chat, rejected, lambda done, total: calls.append((done, total)))
    assert good["source"][:] == ["blue:1"] and lengths.tolist() == [12]  # [ user 4 x image what? ] [ assistant navy ]
    assert calls == [(n, 4) for n in range(1, 5)]
    assert [record.source for record in rejected] == ["red:1", "red:1", "gone:1"]
    assert "cannot be read" in rejected[0].reason
    assert chat.processor.image_processor.seen == 0  # only headers are read
    chat.max_length = 12
    assert len(fit(good, chat, rejected)[0]) == 1
    chat.max_length = 11
    assert len(fit(good, chat, rejected)[0]) == 0
    assert rejected[-1].reason == (
        "12 tokens (4 of them of images), the model takes 11; shorten the prompt or the answer, or show smaller images"
    )
