"""Published models at full size, without weights: parts, targets and parameter counts, on the meta device.

Configurations hold the numbers that shape the weights, and the counts are in millions, as their authors publish them
(written down from memory, without the hub at hand: numbers and counts check each other).
"""

import pytest
import torch
import transformers

import vlm_models

CLIP_B = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
CLIP_L = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
SIGLIP_SO400M = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_attention_heads": 16,
    "patch_size": 14,
    "model_type": "siglip_vision_model",
    "vision_use_head": False,
}


def git(vision: dict, patch: int, side: int = 224) -> transformers.PreTrainedConfig:
    return transformers.GitConfig(
        vision_config={**vision, "patch_size": patch, "image_size": side}, num_image_with_embedding=None
    )


def blip2(text: transformers.PreTrainedConfig, image_token: int) -> transformers.PreTrainedConfig:
    return transformers.Blip2Config(text_config=text.to_dict(), image_token_index=image_token, num_query_tokens=32)


def opt(hidden: int, layers: int, heads: int) -> transformers.PreTrainedConfig:
    return transformers.OPTConfig(
        vocab_size=50304,
        hidden_size=hidden,
        word_embed_proj_dim=hidden,
        ffn_dim=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
    )


def flan_t5(width: int, ff: int, heads: int) -> transformers.PreTrainedConfig:
    return transformers.T5Config(
        vocab_size=32128,
        d_model=width,
        d_kv=64,
        d_ff=ff,
        num_layers=24,
        num_heads=heads,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
    )


def qwen_text(vocabulary: int, hidden: int, ff: int, layers: int, heads: int, pairs: int, **more) -> dict:
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}
    return {
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": ff,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": pairs,
        "rope_parameters": rope,
        **more,
    }


def qwen2_vl_2b() -> transformers.PreTrainedConfig:
    return transformers.Qwen2VLConfig(
        text_config=qwen_text(151936, 1536, 8960, 28, 12, 2),
        vision_config={"depth": 32, "embed_dim": 1280, "hidden_size": 1536, "num_heads": 16, "mlp_ratio": 4},
        tie_word_embeddings=True,
    )


def qwen2_vl_7b() -> transformers.PreTrainedConfig:
    return transformers.Qwen2VLConfig(
        text_config=qwen_text(152064, 3584, 18944, 28, 28, 4),
        vision_config={"depth": 32, "embed_dim": 1280, "hidden_size": 3584, "num_heads": 16, "mlp_ratio": 4},
    )


def qwen2_5_vl_3b() -> transformers.PreTrainedConfig:
    return transformers.Qwen2_5_VLConfig(
        text_config=qwen_text(151936, 2048, 11008, 36, 16, 2),
        vision_config={"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "out_hidden_size": 2048},
        tie_word_embeddings=True,
    )


def qwen3_vl_2b() -> transformers.PreTrainedConfig:
    vision = {"depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "out_hidden_size": 2048}
    return transformers.Qwen3VLConfig(
        text_config=qwen_text(151936, 2048, 6144, 28, 16, 8, head_dim=128),
        vision_config={**vision, "deepstack_visual_indexes": [5, 11, 17]},
        tie_word_embeddings=True,
    )


def smolvlm_256m() -> transformers.PreTrainedConfig:
    text = {
        "model_type": "llama",
        "vocab_size": 49280,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "head_dim": 64,
    }
    return transformers.SmolVLMConfig(
        text_config=text,
        vision_config={**CLIP_B, "image_size": 512, "patch_size": 16},
        image_token_id=49190,
        scale_factor=4,
        pad_token_id=2,
    )


def llava_onevision_05b() -> transformers.PreTrainedConfig:
    text = {
        "model_type": "qwen2",
        "vocab_size": 152000,
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
    }
    return transformers.LlavaOnevisionConfig(
        text_config=text,
        vision_config={**SIGLIP_SO400M, "num_hidden_layers": 26, "image_size": 384},
        tie_word_embeddings=True,
    )


def gemma3_4b() -> transformers.PreTrainedConfig:
    text = {
        "vocab_size": 262208,
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "num_hidden_layers": 34,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "sliding_window": 1024,
    }
    return transformers.Gemma3Config(
        text_config=text, vision_config={**SIGLIP_SO400M, "num_hidden_layers": 27, "image_size": 896}
    )


def internvl3_1b() -> transformers.PreTrainedConfig:
    text = {
        "model_type": "qwen2",
        "vocab_size": 151674,
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
    }
    vision = {**CLIP_L, "image_size": [448, 448], "patch_size": [14, 14], "attention_bias": True}
    return transformers.InternVLConfig(text_config=text, vision_config=vision, tie_word_embeddings=False)


def vit_gpt2() -> transformers.PreTrainedConfig:
    return transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(
        transformers.ViTConfig(), transformers.GPT2Config(add_cross_attention=True, is_decoder=True)
    )


# T5's configuration ties its head to its embeddings; Flan-T5's own head (32128 x width more) is there once loaded.
# name: (its configuration, millions of parameters, linear layers of the language part, of them q_proj or its like)
PUBLISHED = {
    "microsoft/git-base": (lambda: git(CLIP_B, 16), 177, 6 * 6, "query"),
    "microsoft/git-large": (lambda: git(CLIP_L, 14), 394, 6 * 6, "query"),
    "microsoft/git-base-vqav2": (lambda: git(CLIP_B, 16, 480), 178, 6 * 6, "query"),
    "Salesforce/blip2-opt-2.7b": (lambda: blip2(opt(2560, 32, 32), 50265), 3745, 32 * 6, "q_proj"),
    "Salesforce/blip2-opt-6.7b": (lambda: blip2(opt(4096, 32, 32), 50265), 7753, 32 * 6, "q_proj"),
    "Salesforce/blip2-flan-t5-xl": (lambda: blip2(flan_t5(2048, 5120, 32), 32100), 3877, 24 * (7 + 11), "q"),
    "Salesforce/blip2-flan-t5-xxl": (lambda: blip2(flan_t5(4096, 10240, 64), 32100), 12098, 24 * (7 + 11), "q"),
    "Qwen/Qwen2-VL-2B-Instruct": (qwen2_vl_2b, 2209, 28 * 7, "q_proj"),
    "Qwen/Qwen2-VL-7B-Instruct": (qwen2_vl_7b, 8291, 28 * 7, "q_proj"),
    "Qwen/Qwen2.5-VL-3B-Instruct": (qwen2_5_vl_3b, 3755, 36 * 7, "q_proj"),
    "Qwen/Qwen3-VL-2B-Instruct": (qwen3_vl_2b, 2127, 28 * 7, "q_proj"),
    "HuggingFaceTB/SmolVLM2-256M-Video-Instruct": (smolvlm_256m, 256, 30 * 7, "q_proj"),
    "llava-hf/llava-onevision-qwen2-0.5b-ov-hf": (llava_onevision_05b, 894, 24 * 7, "q_proj"),
    "google/gemma-3-4b-it": (gemma3_4b, 4300, 34 * 7, "q_proj"),
    "OpenGVLab/InternVL3-1B-hf": (internvl3_1b, 938, 24 * 7, "q_proj"),
    "nlpconnect/vit-gpt2-image-captioning": (vit_gpt2, 239, 12 * 7, "c_attn"),
}


@pytest.fixture(params=PUBLISHED)
def name(request) -> str:
    return request.param


@pytest.fixture
def vlm(name) -> vlm_models.VLM:
    return vlm_models.skeleton(PUBLISHED[name][0](), name)


def count(vlm: vlm_models.VLM) -> int:
    return sum(parameter.numel() for parameter in vlm.parameters())


def test_it_has_as_many_parameters_as_published(vlm, name):
    assert count(vlm) / 1e6 == pytest.approx(PUBLISHED[name][1], rel=0.005)
    assert all(parameter.is_meta for parameter in vlm.parameters())


def test_targets_are_those_of_its_layers(vlm, name):
    _, _, layers, query = PUBLISHED[name]
    targets = vlm.targets("language")
    assert len(targets) == layers
    assert any(target.split(".")[-1] == query for target in targets)
    assert vlm.targets("vision") and not any("head" in target.split(".")[-1] for target in vlm.targets("all"))


def test_every_parameter_is_in_one_part_or_the_head_or_the_text_embeddings(vlm):
    parts = {"vision": vlm.vision_parts, "language": vlm.language_parts}
    head = {id(parameter) for parameter in vlm.head.parameters()}
    for key, parameter in vlm.model.named_parameters():
        inside = [part for part, names in parts.items() if f"{key}.".startswith(tuple(f"{one}." for one in names))]
        assert len(inside) == 1 or id(parameter) in head or key.startswith("git.embeddings"), key


def test_lora_of_blip2_opt_27b_trains_5_242_880_parameters():
    vlm = vlm_models.skeleton(blip2(opt(2560, 32, 32), 50265), "Salesforce/blip2-opt-2.7b")
    layers = [vlm.model.get_submodule(one) for one in vlm.targets("language") if one.endswith(("q_proj", "v_proj"))]
    assert sum(16 * (layer.in_features + layer.out_features) for layer in layers) == 5_242_880


@pytest.mark.parametrize(
    ("name", "images", "expected"),
    [
        ("microsoft/git-base", {"pixel_values": (2, 3, 224, 224)}, [(197, 768)] * 2),
        ("microsoft/git-base-vqav2", {"pixel_values": (1, 3, 480, 480)}, [(901, 768)]),
        ("nlpconnect/vit-gpt2-image-captioning", {"pixel_values": (2, 3, 224, 224)}, [(197, 768)] * 2),
        ("google/gemma-3-4b-it", {"pixel_values": (2, 3, 896, 896)}, [(256, 2560)] * 2),
        ("OpenGVLab/InternVL3-1B-hf", {"pixel_values": (2, 3, 448, 448)}, [(256, 896)] * 2),
    ],
)
def test_images_become_as_many_tokens_as_published(name, images, expected):
    vlm = vlm_models.skeleton(PUBLISHED[name][0](), name)
    features = vlm._encode({key: torch.empty(shape, device="meta") for key, shape in images.items()})
    assert [one.shape for one in features] == expected


def test_what_no_family_runs_is_told():
    with pytest.raises(vlm_models.ModelError, match="is a 'bert' model; supported: git, blip-2, qwen2_vl"):
        vlm_models.skeleton(transformers.BertConfig(), "bert-base-uncased")
