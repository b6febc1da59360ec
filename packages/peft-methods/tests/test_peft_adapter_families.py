"""The placements in every kind of block of the four families: each block's forward by hand, in float64."""

import copy

import pytest
import torch
from torch import nn

transformers = pytest.importorskip("transformers")

from transformers.models.blip_2 import modeling_blip_2 as blip2  # noqa: E402
from transformers.models.git import modeling_git as git  # noqa: E402
from transformers.models.gpt2 import modeling_gpt2 as gpt2  # noqa: E402
from transformers.models.opt import modeling_opt as opt  # noqa: E402
from transformers.models.qwen2_vl import modeling_qwen2_vl as qwen2_vl  # noqa: E402
from transformers.models.vit import modeling_vit as vit  # noqa: E402

import peft_methods as pm  # noqa: E402

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}


def eager(config):
    config._attn_implementation = "eager"
    return config


def git_text():
    config = eager(
        transformers.GitConfig(vocab_size=20, vision_config={**SIZES, "image_size": 8, "patch_size": 4}, **SIZES)
    )

    def forward(block, h, after, feed):
        output = block.attention.output
        h = output.LayerNorm(h + after("attention.output.dropout", output.dense(block.attention.self(h)[0])))
        y = block.output.dense(block.intermediate(h))
        return block.output.LayerNorm(h + feed("output.dropout", "output.dropout", h, y))

    return git.GitLayer(config, layer_idx=0), forward, {}


def git_vision():
    config = eager(transformers.GitVisionConfig(image_size=8, patch_size=4, **SIZES))
    return (
        git.GitVisionEncoderLayer(config),
        pre_norm("self_attn", "layer_norm1", "layer_norm2"),
        {"attention_mask": None},
    )


def blip2_vision():
    config = eager(transformers.Blip2VisionConfig(image_size=8, patch_size=4, **SIZES))
    forward = pre_norm("self_attn", "layer_norm1", "layer_norm2", projection="projection")
    return blip2.Blip2EncoderLayer(config), forward, {}


def qformer():
    config = eager(transformers.Blip2QFormerConfig(encoder_hidden_size=12, cross_attention_frequency=1, **SIZES))
    image = torch.randn(2, 7, 12, dtype=torch.float64)

    def forward(block, h, after, feed):
        for name, inputs in (("attention", {}), ("crossattention", {"encoder_hidden_states": image})):
            module = getattr(block, name)
            y = module.output.dense(module.attention(h, **inputs)[0])
            h = module.output.LayerNorm(h + after(f"{name}.output.dropout", y))
        y = block.output_query.dense(block.intermediate_query(h))
        return block.output_query.LayerNorm(h + feed("output_query.dropout", "output_query.dropout", h, y))

    return blip2.Blip2QFormerLayer(config, 0), forward, {"encoder_hidden_states": image, "query_length": 5}


def opt_decoder():
    config = eager(transformers.OPTConfig(ffn_dim=24, word_embed_proj_dim=16, dropout=0.0, **SIZES))

    def forward(block, h, after, feed):
        h = h + after("self_attn.out_proj", block.self_attn(block.self_attn_layer_norm(h))[0])
        x = block.final_layer_norm(h)
        return h + feed("fc2", "fc2", x, block.fc2(block.fc1(x).relu()))

    return opt.OPTDecoderLayer(config, layer_idx=0), forward, {}


def qwen2_vl_text():
    config = eager(transformers.Qwen2VLConfig(text_config={**SIZES, "num_key_value_heads": 1}).text_config)
    rotary = torch.randn(2, 2, 5, 8, dtype=torch.float64)
    config.rope_parameters = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
    inputs = {"position_embeddings": tuple(rotary), "attention_mask": None}
    forward = pre_norm("self_attn", "input_layernorm", "post_attention_layernorm", "o_proj", "down_proj", **inputs)
    return qwen2_vl.Qwen2VLDecoderLayer(config, 0), forward, inputs


def qwen2_vl_vision():
    config = eager(transformers.Qwen2VLConfig(vision_config={"embed_dim": 16, "num_heads": 2}).vision_config)
    rotary = torch.randn(2, 5, 8, dtype=torch.float64)
    inputs = {"cu_seqlens": torch.tensor([0, 5]), "position_embeddings": tuple(rotary)}
    forward = pre_norm("attn", "norm1", "norm2", "proj", **inputs)
    return qwen2_vl.Qwen2VLVisionBlock(config, "eager"), forward, inputs


def vit_encoder():
    config = eager(transformers.ViTConfig(image_size=8, patch_size=4, **SIZES))
    return vit.ViTLayer(config), pre_norm("attention", "layernorm_before", "layernorm_after", "o_proj"), {}


def gpt2_decoder():
    config = eager(transformers.GPT2Config(n_embd=16, n_head=2, n_inner=24, add_cross_attention=True))
    image = torch.randn(2, 7, 16, dtype=torch.float64)

    def forward(block, h, after, feed):
        h = h + after("attn.c_proj", block.attn(block.ln_1(h))[0])
        h = h + after(
            "crossattention.c_proj", block.crossattention(block.ln_cross_attn(h), encoder_hidden_states=image)[0]
        )
        x = block.ln_2(h)
        return h + feed("mlp.c_proj", "mlp", x, block.mlp(x))

    return gpt2.GPT2Block(config, layer_idx=0), forward, {"encoder_hidden_states": image}


def pre_norm(attention, norm1, norm2, projection="out_proj", last="fc2", **inputs):
    """The block of most models: h + attention(norm(h)), then h + mlp(norm(h))."""

    def forward(block, h, after, feed):
        y = getattr(block, attention)(getattr(block, norm1)(h), **inputs)
        h = h + after(f"{attention}.{projection}", y[0] if isinstance(y, tuple) else y)
        x = getattr(block, norm2)(h)
        return h + feed(f"mlp.{last}", "mlp", x, block.mlp(x))

    return forward


BLOCKS = [
    git_text,
    git_vision,
    blip2_vision,
    qformer,
    opt_decoder,
    qwen2_vl_text,
    qwen2_vl_vision,
    vit_encoder,
    gpt2_decoder,
]


@pytest.mark.parametrize("placement", ["houlsby", "pfeiffer", "parallel"])
@pytest.mark.parametrize("make", BLOCKS, ids=lambda make: make.__name__)
def test_block_by_hand(make, placement):
    torch.manual_seed(0)
    block, forward, inputs = make()
    blocks = nn.ModuleList([block]).double().eval()
    original = copy.deepcopy(block)
    attachment = pm.attach(blocks, pm.Adapter(placement, size=3, activation="gelu", scale=0.7))
    for parameter in attachment.parameters():
        nn.init.normal_(parameter, std=0.3)
    used = set()

    def adapter(name, x):
        used.add(f"0.{name}")
        part = attachment.modules[f"0.{name}"]
        hidden = nn.functional.gelu(x @ part.down.weight.T + part.down.bias)
        return 0.7 * (hidden @ part.up.weight.T + part.up.bias)

    def after(name, y):
        return y + adapter(name, y) if placement == "houlsby" else y

    def feed(sequential, parallel, x, y):
        return y + (adapter(parallel, x) if placement == "parallel" else adapter(sequential, y))

    h = torch.randn(*([5, 16] if make is qwen2_vl_vision else [2, 5, 16]), dtype=torch.float64, requires_grad=True)
    actual = block(h, **inputs)
    actual = actual[0] if isinstance(actual, tuple) else actual
    expected = forward(original, h, after, feed)
    assert used == attachment.modules.keys()
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    weight = torch.randn_like(expected)
    actual = torch.autograd.grad((actual * weight).sum(), [h, *attachment.parameters()])
    expected = torch.autograd.grad((expected * weight).sum(), [h, *attachment.parameters()])
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("placement", ["houlsby", "pfeiffer", "parallel"])
def test_generation_with_cache_and_padding(placement):
    """OPT's parallel adapter keeps the input of one layer until another has run: every step its own."""
    torch.manual_seed(0)
    config = transformers.OPTConfig(vocab_size=30, ffn_dim=24, word_embed_proj_dim=16, dropout=0.0, **SIZES)
    model = transformers.OPTForCausalLM(config).eval()
    base = model.generate(torch.tensor([[5, 7, 9]]), max_new_tokens=8, do_sample=False, eos_token_id=None)
    attachment = pm.attach(model, pm.Adapter(placement, size=4))
    for parameter in attachment.parameters():
        nn.init.normal_(parameter, std=0.5)
    ids, mask = torch.tensor([[1, 1, 5, 7, 9], [6, 4, 5, 8, 3]]), torch.tensor([[0, 0, 1, 1, 1], [1] * 5])
    options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    with_cache = model.generate(ids, attention_mask=mask, use_cache=True, **options)
    assert torch.equal(with_cache, model.generate(ids, attention_mask=mask, use_cache=False, **options))
    alone = model.generate(ids[:1, 2:], **options)
    assert torch.equal(with_cache[:1, 2:], alone) and not torch.equal(alone, base)
