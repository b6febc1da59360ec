"""What every batch must be, of all families and over random rows: the labels are the answers and what ends them, an
image has as many placeholders as features, and a row is whole or rejected."""

import io

import datasets
import numpy as np
import pytest
import torch
from conftest import NAMES
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers.image_utils import SizeDict

import vlm_data
import vlm_models
from vlm_data import DataError

SIZES = SizeDict(shortest_edge=1024, longest_edge=16384)  # pixels: 4 to 64 tokens of 16 x 16
EXAMPLES = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
ENDS = {"git": "[SEP]", "blip2": None, "chat": "<|im_end|>", "encoder_decoder": None}  # None: the tokenizer's own

KNOWN = [
    "a",
    "red",
    "circle",
    "and",
    "two",
    "blue",
    "squares",
]  # every tiny tokenizer gives these back as they are
words = st.lists(st.sampled_from(KNOWN), min_size=1, max_size=6).map(" ".join)
odd = st.sampled_from(["<image>", "<|image_pad|>", "<|im_end|>", "[SEP]", "</s>", "\u200b", "x" * 300, "{{ x }}", "\0"])
text = st.one_of(words, words, st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12), odd)
text = text.map(str.strip).filter(bool)  # as sources give them
size = st.tuples(st.integers(8, 200), st.integers(8, 200))


def picture(size: tuple[int, int]) -> dict:
    file = io.BytesIO()
    Image.new("RGB", size, (size[0], size[1], 0)).save(file, "PNG")
    return {"path": None, "bytes": file.getvalue()}


def row_of(prompt, references, shown) -> dict:
    return {"id": "x-1", "image": shown, "prompt": prompt, "references": references, "source": "x.csv:1"}


rows = st.builds(row_of, st.none() | text, st.lists(text, min_size=1, max_size=3), size.map(picture))


@pytest.fixture(params=NAMES, scope="module")
def vlm(request):
    """A tiny model; of Qwen's, images are as large as they are, within limits."""
    vlm = vlm_models.load(request.param, device="cpu")
    if vlm.family == "chat":
        vlm.processor.image_processor.size = SIZES
    return vlm.eval()


@pytest.fixture(scope="module")
def chat():
    vlm = vlm_models.load("tiny-qwen2-vl", device="cpu")
    vlm.processor.image_processor.size = SIZES
    return vlm


@pytest.fixture
def chat_processor(chat):
    yield chat.processor
    chat.processor.image_processor.size = SIZES


def end_of(vlm) -> int:
    end = ENDS[vlm.family]
    return vlm.processor.tokenizer.eos_token_id if end is None else vlm.processor.tokenizer.convert_tokens_to_ids(end)


def ids_of(vlm, text: str) -> list[int]:
    return vlm.processor.tokenizer(text, add_special_tokens=False).input_ids


@EXAMPLES
@given(rows=st.lists(rows, min_size=1, max_size=3), side=st.sampled_from(["left", "right"]))
def test_labels_are_answers_and_placeholders_are_features(vlm, rows, side):
    collate = vlm_data.collator(vlm.processor, vlm.family, padding_side=side)
    rows = [{**row, "references": row["references"][:1]} for row in rows]
    try:
        batch = collate(rows)
    except DataError as error:  # the only two things that may be wrong with such a row
        assert str(error).endswith("remove it") or "no tokens" in str(error)
        texts = " ".join(part for row in rows for part in (row["prompt"] or "", *row["references"]))
        wrong = "<image>" in texts or "<|image_pad|>" in texts
        assert wrong or any(not ids_of(vlm, row["references"][0]) for row in rows)
        return
    real = batch["attention_mask"].bool()
    assert batch["padding"] == pytest.approx((~real).float().mean().item())
    assert (batch["labels"][~real] == -100).all()
    supervised = batch["labels"] != -100
    assert torch.equal(batch["labels"][supervised], batch["input_ids"][supervised])
    for row, labels in zip(rows, batch["labels"], strict=True):
        *answer, end = labels[labels != -100].tolist()
        spaced = row["prompt"] is not None and vlm.family in ("blip2", "encoder_decoder")
        assert answer == ids_of(vlm, " " * spaced + row["references"][0]) and end == end_of(vlm)
        if set(row["references"][0].split()) <= set(KNOWN):
            assert vlm.processor.tokenizer.decode(answer).strip() == row["references"][0]
    if vlm.family in ("chat", "blip2"):
        features = vlm.encode_images(batch)
        placeholders = (batch["input_ids"] == vlm.model.config.image_token_id).sum(1)
        assert placeholders.tolist() == [len(features[image]) for image in batch["image_index"]]


@EXAMPLES
@given(
    rows=st.lists(rows, min_size=1, max_size=4),
    limit=st.integers(4, 90),
    choice=st.sampled_from(["frequent", "sample"]),
)
def test_a_row_is_whole_or_rejected(vlm, rows, limit, choice):
    """And what `fit` says of it without its pixels is what its batch will be."""
    whole = vlm_data.collator(vlm.processor, vlm.family, answer_choice=choice)
    collate = vlm_data.collator(vlm.processor, vlm.family, limit, answer_choice=choice)
    rejected = []
    table = datasets.Dataset.from_list(
        [{**row, "source": f"x.csv:{n}", "id": str(n)} for n, row in enumerate(rows)], features=vlm_data.FEATURES
    )
    good, lengths = vlm_data.fit(table, collate, rejected)
    assert len(good) == len(lengths) == len(rows) - len(rejected)
    assert all(record.source.startswith("x.csv:") for record in rejected)
    for row, length in zip(good, lengths, strict=True):
        batches = [collate([row], epoch=epoch) for epoch in range(6)]
        assert length <= limit
        for epoch, batch in enumerate(batches):
            assert batch["input_ids"].shape[1] <= length
            assert torch.equal(batch["input_ids"], whole([row], epoch=epoch)["input_ids"])
        if choice == "frequent":
            assert batches[0]["input_ids"].shape[1] == length
    for record in rejected:
        row = table[int(record.source.rpartition(":")[2])]
        longest = 0
        try:
            longest = max(whole([{**row, "references": [one]}])["input_ids"].shape[1] for one in row["references"])
        except DataError:
            continue  # rejected for what it says
        assert longest > limit and "tokens" in record.reason


exchange = st.tuples(text, text, st.booleans())


@EXAMPLES
@given(
    exchanges=st.lists(exchange, min_size=1, max_size=4),
    tags=st.lists(st.integers(0, 2), min_size=4, max_size=4),
    sizes=st.lists(size, min_size=8, max_size=8),
    system=st.none() | words,
)
def test_of_a_conversation_the_turns_with_loss_are_trained_on(chat, exchanges, tags, sizes, system):
    turns = [] if system is None else [{"role": "system", "text": system, "loss": False}]
    for (asked, answer, loss), shown in zip(exchanges, tags, strict=False):
        turns.append({"role": "user", "text": "<image>\n" * shown + asked.replace("<image>", "?"), "loss": False})
        turns.append({"role": "assistant", "text": answer.replace("<image>", "?"), "loss": loss})
    count = sum(turn["text"].count("<image>") for turn in turns)
    images = [picture(one) for one in sizes[: count or 1]]
    row = {**row_of("", ["x"], images[0]), "turns": turns, "images": images}
    expected = [turn["text"] for turn in turns if turn["loss"]]
    try:
        batch = vlm_data.collator(chat.processor, "chat")([row])
    except DataError as error:
        texts = [turn["text"] for turn in turns]
        assert not expected or any("<|image_pad|>" in one for one in texts) or not all(map(ids_of_all(chat), expected))
        assert "x.csv:1" in str(error)
        return
    labels = batch["labels"][0]
    trained = labels[labels != -100].tolist()
    end = end_of(chat)
    assert trained == [token for answer in expected for token in (*ids_of(chat, answer), end)]
    placeholders = batch["input_ids"] == chat.model.config.image_token_id
    assert int(placeholders.sum()) == sum(grid.prod() // 4 for grid in batch["image_grid_thw"])
    assert len(batch["image_index"]) == len(images)
    # an image's tokens are one run, as long as the image has features
    padded = np.concatenate([[0], placeholders[0].int().numpy(), [0]])
    edges = np.flatnonzero(np.diff(padded)).reshape(-1, 2)
    assert (edges[:, 1] - edges[:, 0]).tolist() == [int(grid.prod() // 4) for grid in batch["image_grid_thw"]]


def ids_of_all(vlm):
    return lambda text: bool(ids_of(vlm, text))


@EXAMPLES
@given(size=st.tuples(st.integers(8, 900), st.integers(8, 900)), tokens=st.integers(12, 200))
@example(size=(41, 344), tokens=64)
def test_an_image_is_shrunk_to_the_limit_with_its_ratio_kept(chat_processor, size, tokens):
    """Against Qwen's processor itself, on what it would make of the image without a limit."""
    processor = chat_processor
    processor.image_processor.size = SizeDict(shortest_edge=1024, longest_edge=2**24)
    image = picture(size)

    def grid():
        return vlm_data.collator(processor, "chat").image_inputs([vlm_data.decode(image)])[0]["image_grid_thw"][1:] // 2

    free = grid()
    said = vlm_data.limit_image_tokens(processor, tokens, [image, image])
    height, width = grid().tolist()
    if free.prod() <= tokens:
        assert said is None and [height, width] == free.tolist()
    else:
        assert said == f"1 of 1 images are shrunk to {tokens:,} tokens; the largest has {free.prod():,}"
        if max(size) / min(size) <= tokens:  # else it would be less than a token wide
            assert height * width <= tokens
            assert height <= free[0] + 1 and width <= free[1] + 1  # one side is rounded up as the other is cut
            ratio = size[1] / size[0]
            assert (height - 1) / (width + 1) <= ratio <= (height + 1) / max(width - 1, 0.01)
    assert vlm_data.limit_image_tokens(processor, tokens) is None  # it is limited already


def test_other_processors_keep_their_sizes(vlm):
    before = str(vlm.processor.image_processor.to_dict())
    if vlm.family != "chat":
        assert vlm_data.limit_image_tokens(vlm.processor, 1) is None
    assert vlm_data.limit_image_tokens(vlm.processor, 64) is None  # its own limit
    assert str(vlm.processor.image_processor.to_dict()) == before
    with pytest.raises(DataError, match="a limit of 0 tokens to an image; it must be at least 1"):
        vlm_data.limit_image_tokens(vlm.processor, 0)
