"""Tiny random models, whose tokenizers know every byte."""

import pytest
import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
    CLIPTokenizer,
    RobertaConfig,
    RobertaModel,
    RobertaTokenizer,
)

SHAPE = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("clip"))
    letters = sorted(ByteLevel.alphabet())
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = CLIPConfig(
        text_config={
            **shape,
            "vocab_size": len(words),
            "max_position_embeddings": 40,
            "bos_token_id": len(words) - 2,
            "eos_token_id": len(words) - 1,
        },
        vision_config={**shape, "image_size": 16, "patch_size": 8},
        projection_dim=8,
        initializer_factor=5.0,  # random texts and images far enough apart
    )
    torch.manual_seed(1)
    CLIPModel(config).save_pretrained(folder)
    tokenizer = CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=40)
    image_processor = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    CLIPProcessor(image_processor, tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_roberta(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("encoder-r"))
    vocab = {w: i for i, w in enumerate(["<s>", "<pad>", "</s>", "<unk>", "<mask>", *sorted(ByteLevel.alphabet())])}
    torch.manual_seed(0)
    config = RobertaConfig(vocab_size=len(vocab), max_position_embeddings=32, pad_token_id=1, **SHAPE)
    RobertaModel(config).save_pretrained(folder)
    RobertaTokenizer(vocab=vocab, merges=[]).save_pretrained(folder)
    return folder
