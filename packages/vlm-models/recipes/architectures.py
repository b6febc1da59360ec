"""The four tiny models before training: real transformers classes, real processors, a vocabulary of their own."""

import json
from collections.abc import Callable, Iterable
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import nn
from transformers import (
    BertTokenizer,
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    Blip2QFormerConfig,
    Blip2VisionConfig,
    BlipImageProcessor,
    CLIPImageProcessor,
    GitConfig,
    GitForCausalLM,
    GitProcessor,
    GitVisionConfig,
    GPT2Config,
    GPT2Tokenizer,
    OPTConfig,
    Qwen2Tokenizer,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTConfig,
    ViTImageProcessor,
)

from vlm_models.families import Blip2, Chat, EncoderDecoder, Git
from vlm_models.pair import ImageTextPair
from vlm_models.vlm import VLM

WIDTH, HEADS = 128, 4
POSITIONS = 128  # longest text in tokens
VOCABULARY = 640
MEAN = STD = [0.5, 0.5, 0.5]

# Qwen2-VL's conversation format without its default system turn, which would only cost a tiny model's time.
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN_TOKENS = [
    "<|endoftext|>", "<|im_start|>", "<|im_end|>",
    "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>",
]  # fmt: skip


def build(name: str, texts: Iterable[str]) -> VLM:
    """The untrained tiny model `name`, its vocabulary trained on `texts`."""
    return BUILDERS[name](list(texts))


def tiny_git(texts: list[str]) -> Git:
    tokenizer = BertTokenizer(vocab=_wordpiece(texts), model_max_length=POSITIONS)
    image_processor = _square(CLIPImageProcessor, 60, do_center_crop=False)
    config = GitConfig(
        vocab_size=len(tokenizer), hidden_size=WIDTH, num_hidden_layers=4, num_attention_heads=HEADS,
        intermediate_size=4 * WIDTH, max_position_embeddings=POSITIONS,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, tie_word_embeddings=True,
        bos_token_id=tokenizer.cls_token_id, eos_token_id=tokenizer.sep_token_id, pad_token_id=tokenizer.pad_token_id,
        vision_config=GitVisionConfig(
            hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_hidden_layers=4, num_attention_heads=HEADS,
            image_size=60, patch_size=10,
        ).to_dict(),
    )  # fmt: skip
    return Git(GitForCausalLM(config), GitProcessor(image_processor, tokenizer), "tiny-git")


def tiny_blip2(texts: list[str]) -> Blip2:
    special = ["<pad>", "</s>", "<image>"]
    vocab, merges = _bpe([f"Question: {text} Answer:" for text in texts[:2000]] + texts, special)
    tokenizer = GPT2Tokenizer(
        vocab=vocab, merges=merges, bos_token="</s>", eos_token="</s>", unk_token="</s>", pad_token="<pad>",
        model_max_length=POSITIONS,
    )  # fmt: skip
    processor = Blip2Processor(_square(BlipImageProcessor, 64), tokenizer, num_query_tokens=16)
    ids = {"bos_token_id": vocab["</s>"], "eos_token_id": vocab["</s>"], "pad_token_id": vocab["<pad>"]}
    config = Blip2Config(
        vision_config=Blip2VisionConfig(
            hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_hidden_layers=3, num_attention_heads=HEADS,
            image_size=64, patch_size=8,
            initializer_range=0.02,  # transformers' default is 1e-10, from which nothing is learned
        ).to_dict(),
        qformer_config=Blip2QFormerConfig(
            hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=HEADS, intermediate_size=2 * WIDTH,
            cross_attention_frequency=1, encoder_hidden_size=WIDTH, vocab_size=8, max_position_embeddings=8,
            hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        ).to_dict(),
        text_config=OPTConfig(
            vocab_size=len(tokenizer), hidden_size=WIDTH, word_embed_proj_dim=WIDTH, ffn_dim=3 * WIDTH,
            num_hidden_layers=4, num_attention_heads=HEADS, max_position_embeddings=POSITIONS,
            dropout=0.0, attention_dropout=0.0, tie_word_embeddings=True, **ids,
        ).to_dict(),
        num_query_tokens=16, image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    model = Blip2ForConditionalGeneration(config)
    # transformers starts all query tokens at zero: equal queries would stay equal for ever.
    nn.init.normal_(model.query_tokens, std=1.0)
    return Blip2(model, processor, "tiny-blip2")


def tiny_qwen2_vl(texts: list[str]) -> Chat:
    roles = ["user\n", "assistant\n", "system\n", "Describe the image."]
    vocab, merges = _bpe(texts + roles * 200, QWEN_TOKENS, pretokenize=Qwen2Tokenizer()._tokenizer.pre_tokenizer)
    tokenizer = Qwen2Tokenizer(
        vocab=vocab, merges=merges, eos_token="<|im_end|>", pad_token="<|endoftext|>", model_max_length=4 * POSITIONS,
        extra_special_tokens=QWEN_TOKENS,
    )  # fmt: skip
    size = {"shortest_edge": 64 * 64, "longest_edge": 64 * 64}  # in pixels: about 16 tokens an image
    patches = {"size": size, "patch_size": 8, "temporal_patch_size": 1, "merge_size": 2}
    pixels = {"image_mean": MEAN, "image_std": STD}
    processor = Qwen2VLProcessor(
        Qwen2VLImageProcessor(**patches, **pixels), tokenizer, Qwen2VLVideoProcessor(**patches, **pixels),
        chat_template=CHAT_TEMPLATE,
    )  # fmt: skip
    config = Qwen2VLConfig(
        text_config=dict(
            vocab_size=len(tokenizer), hidden_size=WIDTH, intermediate_size=3 * WIDTH, num_hidden_layers=4,
            num_attention_heads=HEADS, num_key_value_heads=2, max_position_embeddings=4 * POSITIONS,
            rope_parameters=dict(rope_type="default", rope_theta=10_000.0, mrope_section=[4, 6, 6]),
            tie_word_embeddings=True, bos_token_id=vocab["<|endoftext|>"], eos_token_id=vocab["<|im_end|>"],
            pad_token_id=vocab["<|endoftext|>"],
        ),
        vision_config=dict(
            depth=4, embed_dim=WIDTH, hidden_size=WIDTH, num_heads=HEADS, mlp_ratio=3, patch_size=8,
            spatial_merge_size=2, temporal_patch_size=1,
        ),
        image_token_id=vocab["<|image_pad|>"], video_token_id=vocab["<|video_pad|>"],
        vision_start_token_id=vocab["<|vision_start|>"], vision_end_token_id=vocab["<|vision_end|>"],
        tie_word_embeddings=True,
    )  # fmt: skip
    model = Qwen2VLForConditionalGeneration(config)
    model.generation_config.eos_token_id = vocab["<|im_end|>"]
    model.generation_config.pad_token_id = vocab["<|endoftext|>"]
    return Chat(model, processor, "tiny-qwen2-vl")


def tiny_vit_gpt2(texts: list[str]) -> EncoderDecoder:
    end = "<|endoftext|>"
    vocab, merges = _bpe(texts, [end])
    tokenizer = GPT2Tokenizer(vocab=vocab, merges=merges, pad_token=end, model_max_length=POSITIONS)
    processor = ImageTextPair(_square(ViTImageProcessor, 64), tokenizer)
    encoder = ViTConfig(
        hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_hidden_layers=3, num_attention_heads=HEADS,
        image_size=64, patch_size=8, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    decoder = GPT2Config(
        vocab_size=len(tokenizer), n_embd=WIDTH, n_layer=4, n_head=HEADS, n_positions=POSITIONS,
        add_cross_attention=True, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        bos_token_id=vocab[end], eos_token_id=vocab[end], pad_token_id=vocab[end],
    )  # fmt: skip
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    config.decoder_start_token_id = config.bos_token_id = vocab[end]
    config.eos_token_id = config.pad_token_id = vocab[end]
    return EncoderDecoder(VisionEncoderDecoderModel(config), processor, "tiny-vit-gpt2")


BUILDERS: dict[str, Callable[[list[str]], VLM]] = {
    "tiny-git": tiny_git,
    "tiny-blip2": tiny_blip2,
    "tiny-qwen2-vl": tiny_qwen2_vl,
    "tiny-vit-gpt2": tiny_vit_gpt2,
}


def _square(image_processor: type, side: int, **options: Any) -> Any:
    size = {"height": side, "width": side}
    return image_processor(size=size, image_mean=MEAN, image_std=STD, **options)


def _bpe(texts: list[str], special: list[str], pretokenize: Any = None) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """A byte-level BPE vocabulary and its merges; every byte is in it, so that any text can be written."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pretokenize or pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    # Words also come without a space before them: at the beginning of an answer.
    words = sorted({word for text in texts for word in text.replace("?", " ").split()})
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(texts + words * 20, trainer)
    state = json.loads(tokenizer.to_str())["model"]
    return state["vocab"], [tuple(merge) for merge in state["merges"]]


def _wordpiece(texts: list[str]) -> dict[str, int]:
    """A WordPiece vocabulary, as BERT's tokenizer (which GIT uses) needs."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    letters = [chr(code) for code in range(33, 127)]
    trainer = trainers.WordPieceTrainer(
        vocab_size=VOCABULARY, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"],
        initial_alphabet=letters, show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer.get_vocab()
