"""Every class of the chat family with a processor of its own: the collator makes the rows that the processor makes."""

import pytest
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer

import vlm_data
import vlm_models
from vlm_data.collators.conversation_text import CAPTION_PROMPT
from vlm_models.families import Chat

SIDE = 32  # pixels of a tile
MEAN = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
SQUARE = {"height": SIDE, "width": SIDE}
CHATML = """{% for message in messages %}<|im_start|>{{ message.role }}
{% for part in message.content %}{% if part.type == 'image' %}IMAGE{% else %}{{ part.text }}{% endif %}{% endfor %}\
<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
USER_COLON = """{% for message in messages %}{{ message.role | capitalize }}:{% for part in message.content %}\
{% if part.type == 'image' %}<image>{% else %} {{ part.text }}{% endif %}{% endfor %}<end_of_utterance>
{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"""
TURNS = """<bos>{% for message in messages %}<start_of_turn>{{ 'model' if message.role == 'assistant' else 'user' }}
{% for part in message.content %}{% if part.type == 'image' %}<start_of_image>{% else %}{{ part.text }}{% endif %}\
{% endfor %}<end_of_turn>
{% endfor %}{% if add_generation_prompt %}<start_of_turn>model
{% endif %}"""
TEXT = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8,
}  # fmt: skip
SIGLIP = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": SIDE,
    "patch_size": 8,
}  # fmt: skip
CLASSES = ["qwen2_5_vl", "qwen3_vl", "smolvlm", "idefics3", "llava_onevision", "gemma3", "internvl"]
ENDS = {"smolvlm": "<end_of_utterance>", "idefics3": "<end_of_utterance>", "gemma3": "<end_of_turn>"}


def tokenizer(end: str, **named: str) -> transformers.PreTrainedTokenizerFast:
    words = Tokenizer.from_file(str(vlm_models.tiny_folder("tiny-qwen2-vl") / "tokenizer.json"))
    marks = [f"<row_{row}_col_{col}>" for row in (1, 2, 3) for col in (1, 2, 3)]
    marks += ["<global-img>", "<fake_token_around_image>", "<start_of_turn>", "<bos>", "<video>", *ENDS.values()]
    built = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, eos_token=end, pad_token="<|endoftext|>", extra_special_tokens=named
    )
    built.add_special_tokens({"additional_special_tokens": marks}, replace_extra_special_tokens=False)
    return built


def processor(name: str):
    end = "<|endoftext|>" if name == "gemma3" else ENDS.get(name, "<|im_end|>")  # Gemma's turns end with another token
    if name.startswith("qwen"):
        words = tokenizer(end, image_token="<|image_pad|>", video_token="<|video_pad|>")
        kind = transformers.Qwen2_5_VLProcessor if name == "qwen2_5_vl" else transformers.Qwen3VLProcessor
        video = transformers.Qwen2VLVideoProcessor if name == "qwen2_5_vl" else transformers.Qwen3VLVideoProcessor
        images = transformers.Qwen2VLImageProcessor(
            patch_size=4, size={"shortest_edge": 256, "longest_edge": 1024}, temporal_patch_size=2, **MEAN
        )
        template = CHATML.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>")
        return kind(images, words, video(), chat_template=template)
    if name in ("smolvlm", "idefics3"):
        words = tokenizer(end, image_token="<image>")
        sizes = {"size": {"longest_edge": 2 * SIDE}, "max_image_size": {"longest_edge": SIDE}, **MEAN}
        if name == "idefics3":
            images = transformers.Idefics3ImageProcessor(**sizes)
            return transformers.Idefics3Processor(images, words, image_seq_len=4, chat_template=USER_COLON)
        pytest.importorskip("num2words")
        images = transformers.SmolVLMImageProcessor(**sizes)
        video = transformers.SmolVLMVideoProcessor(**sizes)
        return transformers.SmolVLMProcessor(images, words, video, image_seq_len=4, chat_template=USER_COLON)
    if name == "llava_onevision":
        words = tokenizer(end, image_token="<image>", video_token="<video>")
        images = transformers.LlavaOnevisionImageProcessor(size=SQUARE, image_grid_pinpoints=PINPOINTS, **MEAN)
        return transformers.LlavaOnevisionProcessor(
            images,
            words,
            transformers.LlavaOnevisionVideoProcessor(),
            num_image_tokens=16,
            vision_feature_select_strategy="full",
            chat_template=CHATML.replace("IMAGE", "<image>\n"),
        )
    if name == "gemma3":
        words = tokenizer(
            end, image_token="<image_soft_token>", boi_token="<start_of_image>", eoi_token="<end_of_image>"
        )
        images = transformers.Gemma3ImageProcessor(size=SQUARE, **MEAN)
        return transformers.Gemma3Processor(images, words, chat_template=TURNS, image_seq_length=4)
    words = tokenizer(
        end, start_image_token="<img>", end_image_token="</img>", context_image_token="<IMG_CONTEXT>",
        video_token="<video>",
    )  # fmt: skip
    images = transformers.GotOcr2ImageProcessor(size=SQUARE, crop_to_patches=True, min_patches=1, max_patches=4, **MEAN)
    return transformers.InternVLProcessor(
        images,
        words,
        transformers.InternVLVideoProcessor(),
        image_seq_length=4,
        chat_template=CHATML.replace("IMAGE", "<IMG_CONTEXT>\n"),
    )


PINPOINTS = [[SIDE, 2 * SIDE], [2 * SIDE, SIDE], [2 * SIDE, 2 * SIDE]]


def config(name: str, words: transformers.PreTrainedTokenizerFast) -> transformers.PreTrainedConfig:
    text = {**TEXT, "vocab_size": len(words), "pad_token_id": words.pad_token_id, "eos_token_id": words.eos_token_id}
    llama, qwen2 = {**text, "model_type": "llama"}, {**text, "model_type": "qwen2"}
    siglip = {**SIGLIP, "model_type": "siglip_vision_model", "vision_use_head": False}
    image = getattr(words, "image_token", None) or words.context_image_token
    token = words.convert_tokens_to_ids(image)
    if name.startswith("qwen"):
        rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
        shape = {"depth": 2, "num_heads": 2, "patch_size": 4, "hidden_size": 32, "out_hidden_size": 32}
        more = {"deepstack_visual_indexes": [0, 1], "num_position_embeddings": 16} if name == "qwen3_vl" else {}
        kind = transformers.Qwen2_5_VLConfig if name == "qwen2_5_vl" else transformers.Qwen3VLConfig
        vision = {**shape, "intermediate_size": 48, **more}
        return kind(
            text_config={**text, "rope_parameters": rope},
            vision_config=vision,
            image_token_id=token,
            video_token_id=words.convert_tokens_to_ids("<|video_pad|>"),
            vision_start_token_id=words.convert_tokens_to_ids("<|vision_start|>"),
            vision_end_token_id=words.convert_tokens_to_ids("<|vision_end|>"),
        )
    if name in ("smolvlm", "idefics3"):
        kind = transformers.SmolVLMConfig if name == "smolvlm" else transformers.Idefics3Config
        return kind(text_config=llama, vision_config=SIGLIP, image_token_id=token, scale_factor=2)
    if name == "llava_onevision":
        return transformers.LlavaOnevisionConfig(
            text_config=qwen2,
            vision_config=siglip,
            image_token_index=token,
            image_grid_pinpoints=PINPOINTS,
            vision_feature_select_strategy="full",
            vision_feature_layer=-1,
        )
    if name == "gemma3":
        return transformers.Gemma3Config(
            text_config={**text, "query_pre_attn_scalar": 8},
            vision_config=siglip,
            mm_tokens_per_image=4,
            image_token_index=token,
        )
    vision = {**SIGLIP, "image_size": [SIDE, SIDE], "patch_size": [8, 8]}
    return transformers.InternVLConfig(text_config=qwen2, vision_config=vision, image_token_id=token)


@pytest.fixture(params=CLASSES)
def vlm(request) -> Chat:
    torch.manual_seed(0)
    of_model = processor(request.param)
    model = transformers.AutoModelForImageTextToText.from_config(config(request.param, of_model.tokenizer))
    return Chat(model.double().eval(), of_model, request.param)


@pytest.fixture
def rows(tmp_path) -> list[dict]:
    """Questions about pictures of different shapes, and a caption."""
    shown = []
    for number, size in enumerate([(64, 40), (40, 64), (64, 40)]):
        path = tmp_path / f"{number % 2}.png"
        Image.effect_noise(size, 80).convert("RGB").save(path)
        shown.append({"path": str(path), "bytes": None})
    texts = [("what color is it?", "red"), ("how many?", "two circles"), (None, "a scene")]
    return [
        {"id": str(number), "image": image, "prompt": prompt, "references": [answer], "source": f"row {number}"}
        for number, (image, (prompt, answer)) in enumerate(zip(shown, texts, strict=True))
    ]


def processed(vlm: Chat, row: dict) -> dict[str, torch.Tensor]:
    """What the processor makes of a conversation with this answer."""
    question = [{"type": "image"}, {"type": "text", "text": row["prompt"] or CAPTION_PROMPT}]
    answer = [{"type": "text", "text": row["references"][0]}]
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    text = vlm.processor.apply_chat_template(messages, tokenize=False)
    image = vlm_data.decode(row["image"])
    inputs = vlm.processor(text=[text], images=[image], add_special_tokens=False, return_tensors="pt")
    end = vlm.processor.tokenizer.convert_tokens_to_ids(ENDS.get(vlm.name, "<|im_end|>"))
    length = int((inputs["input_ids"][0] == end).nonzero().max()) + 1
    return {
        name: value[:, :length] if name in ("input_ids", "attention_mask") or name.endswith("type_ids") else value
        for name, value in inputs.items()
    }


def test_rows_are_those_that_the_processor_makes(vlm, rows):
    batch = vlm_data.collator(vlm.processor, vlm.family)(rows)
    assert batch["image_index"].tolist() == [0, 1, 0]
    for row, ids, mask, labels in zip(rows, batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True):
        assert ids[mask.bool()].tolist() == processed(vlm, row)["input_ids"][0].tolist()
        said = vlm.processor.tokenizer.decode(labels[labels != -100][:-1]).strip()
        assert said == row["references"][0]
        assert vlm.processor.tokenizer.decode(labels[labels != -100][-1:]) == ENDS.get(vlm.name, "<|im_end|>")


@pytest.fixture
def conversation(rows) -> dict:
    """A system message, then two questions: about two pictures, and about the first of them again."""
    said = [
        ("system", "be brief.", False),
        ("user", "first <image>\nsecond <image>\nwhich is red?", False),
        ("assistant", "the second", True),
        ("user", "again <image> how many?", False),
        ("assistant", "two circles", True),
    ]
    first, second, _ = (row["image"] for row in rows)
    turns = [dict(zip(("role", "text", "loss"), one, strict=True)) for one in said]
    return {**rows[0], "turns": turns, "images": [first, second, first], "references": ["the second"]}


def conversed(vlm: Chat, row: dict, turns: int) -> dict[str, torch.Tensor]:
    """What the processor makes of the first turns of the conversation, to be answered if a question is the last."""
    messages = []
    for turn in row["turns"][:turns]:
        parts = [part.strip() for part in turn["text"].split("<image>")]
        content = [{"type": "text", "text": parts[0]}]
        for part in parts[1:]:
            content += [{"type": "image"}, {"type": "text", "text": part}]
        messages.append({"role": turn["role"], "content": content})
    asks = messages[-1]["role"] == "user"
    text = vlm.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=asks)
    images = [vlm_data.decode(image) for image in row["images"][: text.count(vlm.processor.image_token)]]
    return vlm.processor(text=[text], images=[images], add_special_tokens=False, return_tensors="pt")


def test_conversations_are_those_that_the_processor_makes(vlm, conversation, rows):
    """Of LLaVA-OneVision the processor shows several images smaller than one alone; here each is shown as if alone."""
    collate = vlm_data.collator(vlm.processor, vlm.family)
    batch = collate([rows[0], conversation])
    assert batch["image_index"].tolist() == [0, 1, 2, 3]
    ids, labels = (batch[name][1][batch["attention_mask"][1].bool()] for name in ("input_ids", "labels"))
    end = vlm.processor.tokenizer.convert_tokens_to_ids(ENDS.get(vlm.name, "<|im_end|>"))
    trained = vlm.processor.tokenizer.decode(labels[labels != -100])
    assert [answer.strip() for answer in trained.split(vlm.processor.tokenizer.decode([end]))] == [
        "the second",
        "two circles",
        "",
    ]
    if vlm.name != "llava_onevision":
        whole = conversed(vlm, conversation, 5)["input_ids"][0]
        assert ids.tolist() == whole[: int((whole == end).nonzero().max()) + 1].tolist()
        asked = collate.prompts([rows[0], conversation])
        prompt = asked["input_ids"][1][asked["attention_mask"][1].bool()]
        assert prompt.tolist() == conversed(vlm, conversation, 2)["input_ids"][0].tolist()
    assert int((ids == vlm.model.config.image_token_id).sum()) == sum(map(len, vlm.encode_images(_double(batch))[1:]))


def test_losses_of_conversations_are_those_of_class_and_processor(vlm, conversation, rows):
    if vlm.name == "llava_onevision":
        pytest.skip("shows several images otherwise")
    batch = _double(vlm_data.collator(vlm.processor, vlm.family)([rows[0], conversation]))
    loss, _ = vlm(batch)
    alone, _ = vlm(_double(vlm_data.collator(vlm.processor, vlm.family)(rows[:1])))
    inputs = _double(conversed(vlm, conversation, 5))
    labels = batch["labels"][1][batch["attention_mask"][1].bool()]
    logits = vlm.model(**inputs).logits[0, : len(labels) - 1]
    expected = torch.nn.functional.cross_entropy(logits, labels[1:], reduction="sum")
    assert loss.item() - alone.item() == pytest.approx(expected.item(), rel=1e-6)


def test_answers_to_conversations_are_those_of_their_rows(vlm, conversation, rows):
    vlm.float()
    collate = vlm_data.collator(vlm.processor, vlm.family)
    together = vlm.generate(collate.prompts([conversation, *rows]), max_new_tokens=5)
    alone = [vlm.generate(collate.prompts([row]), max_new_tokens=5)[0] for row in [conversation, *rows]]
    assert [answer.token_ids for answer in together] == [answer.token_ids for answer in alone]


def _double(batch) -> dict:
    return {name: one.double() if name == "pixel_values" else one for name, one in batch.items()}


def test_losses_are_those_of_class_and_processor(vlm, rows):
    batch = vlm_data.collator(vlm.processor, vlm.family)(rows)
    batch = {name: one.double() if name == "pixel_values" else one for name, one in batch.items()}
    loss, count = vlm(batch)
    expected = 0.0
    for row, labels in zip(rows, batch["labels"], strict=True):
        inputs = processed(vlm, row)
        inputs["pixel_values"] = inputs["pixel_values"].double()
        answer = labels[labels != -100]
        logits = vlm.model(**inputs).logits[0, -len(answer) - 1 : -1]
        expected += torch.nn.functional.cross_entropy(logits, answer, reduction="sum").item()
    assert count == (batch["labels"] != -100).sum()
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_features_are_kept_and_give_the_same_loss(vlm, rows, tmp_path):
    collate = vlm_data.collator(vlm.processor, vlm.family)
    vlm.requires_grad_(False).float()
    keys = [vlm_data.content_key(row["image"]) for row in rows]

    def pixels(places: list[int]) -> dict:
        return collate.join_images(collate.image_inputs([vlm_data.decode(rows[place]["image"]) for place in places]))

    vlm_models.FeatureCache(vlm, tmp_path / "kept").fill(keys, pixels)
    again = vlm_models.FeatureCache(vlm, tmp_path / "kept")
    kept = again.encode(keys, lambda places: pytest.fail("encoded twice"))
    batch = collate(rows, kept)
    assert "pixel_values" not in batch
    assert vlm(batch)[0].item() == pytest.approx(vlm(collate(rows))[0].item(), rel=1e-5)


def test_answers_of_a_batch_are_those_of_its_rows(vlm, rows):
    vlm.float()
    collate = vlm_data.collator(vlm.processor, vlm.family)
    together = vlm.generate(collate.prompts(rows), max_new_tokens=5)
    alone = [vlm.generate(collate.prompts([row]), max_new_tokens=5)[0] for row in rows]
    assert [answer.token_ids for answer in together] == [answer.token_ids for answer in alone]
