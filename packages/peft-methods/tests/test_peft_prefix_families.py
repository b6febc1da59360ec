"""Prefixes in tiny random models of transformers' classes, with images, padding, caches and checkpointing."""

import copy
import io

import pytest
import torch

transformers = pytest.importorskip("transformers")

import peft_methods as pm  # noqa: E402

LENGTH = 3
TEXT = torch.tensor([[5, 7, 2, 9, 3, 6], [4, 8, 6, 11, 2, 10]])
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
VISION = {**SIZES, "num_hidden_layers": 1, "image_size": 8, "patch_size": 4}


def padded(tokens, images=None):
    """Rows padded to 6 and by 2 on the left or the right, whatever images there are in front of the text."""
    mask = torch.ones_like(tokens)
    mask[1, :2] = 0
    return {"input_ids": tokens, "attention_mask": mask, **(images or {})}


def pixels():
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def qwen2():
    config = transformers.Qwen2Config(
        vocab_size=20, max_position_embeddings=64, **SIZES | {"num_attention_heads": 4, "num_key_value_heads": 2}
    )
    return transformers.Qwen2ForCausalLM(config), padded(TEXT)


def gpt2_config(**options):
    return transformers.GPT2Config(
        vocab_size=20, n_embd=16, n_layer=2, n_head=2, n_positions=32, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0,
        bos_token_id=0, eos_token_id=None, **options)  # fmt: skip


def gpt2():
    return transformers.GPT2LMHeadModel(gpt2_config()), padded(TEXT)


def opt_config():
    return transformers.OPTConfig(
        vocab_size=20, ffn_dim=24, max_position_embeddings=32, word_embed_proj_dim=16, dropout=0.0,
        eos_token_id=None, **SIZES)  # fmt: skip


def opt():
    return transformers.OPTForCausalLM(opt_config()), padded(TEXT)


def blip2():
    qformer = {"vocab_size": 20, **SIZES, "encoder_hidden_size": 16, "hidden_dropout_prob": 0.0,
               "attention_probs_dropout_prob": 0.0}  # fmt: skip
    config = transformers.Blip2Config(
        vision_config=VISION, qformer_config=qformer, text_config=opt_config(), num_query_tokens=3,
        image_token_index=19)  # fmt: skip
    tokens = torch.cat([torch.full((2, 3), 19), TEXT], dim=1)
    return transformers.Blip2ForConditionalGeneration(config), {"input_ids": tokens, "pixel_values": pixels()}


def git():
    config = transformers.GitConfig(
        vision_config=VISION, vocab_size=20, max_position_embeddings=32, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0, bos_token_id=1, eos_token_id=None, **SIZES)  # fmt: skip
    return transformers.GitForCausalLM(config), {"input_ids": TEXT, "pixel_values": pixels()}


def vit_gpt2():
    decoder = transformers.GPT2LMHeadModel(gpt2_config(is_decoder=True, add_cross_attention=True))
    model = transformers.VisionEncoderDecoderModel(
        encoder=transformers.ViTModel(transformers.ViTConfig(**VISION)), decoder=decoder)  # fmt: skip
    model.config.decoder_start_token_id = model.generation_config.decoder_start_token_id = 1
    model.config.pad_token_id = model.generation_config.pad_token_id = 0
    return model, {"pixel_values": pixels(), "decoder_input_ids": TEXT}


def qwen2_vl():
    text = {**SIZES, "vocab_size": 30, "num_key_value_heads": 1, "max_position_embeddings": 64,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}}  # fmt: skip
    vision = {"depth": 1, "embed_dim": 16, "hidden_size": 16, "num_heads": 2, "mlp_ratio": 2, "patch_size": 4,
              "spatial_merge_size": 2, "temporal_patch_size": 2, "in_channels": 3}  # fmt: skip
    config = transformers.Qwen2VLConfig(
        text_config=text, vision_config=vision, image_token_id=25, video_token_id=26, vision_start_token_id=27,
        vision_end_token_id=28)  # fmt: skip
    image = torch.tensor([27, 25, 25, 25, 25, 28]).expand(2, -1)
    tokens = torch.cat([torch.zeros(2, 2, dtype=torch.long), image, TEXT], dim=1)
    mask = torch.ones_like(tokens)
    mask[1, :2] = 0
    inputs = {"input_ids": tokens, "attention_mask": mask, "mm_token_type_ids": (tokens == 25).long()}
    patches = torch.randn(32, 3 * 2 * 16, generator=torch.Generator().manual_seed(0))
    inputs |= {"pixel_values": patches, "image_grid_thw": torch.tensor([[1, 4, 4]] * 2)}
    return transformers.Qwen2VLForConditionalGeneration(config), inputs


FAMILIES = [qwen2, gpt2, opt, blip2, git, vit_gpt2, qwen2_vl]
METHOD = pm.Prefix(length=LENGTH)


def build(family, dtype=torch.float32):
    torch.manual_seed(0)
    model, inputs = family()
    with torch.no_grad():  # transformers starts with weights so small that attention hardly matters
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.25)
    inputs = {k: v.to(dtype) if v.is_floating_point() else v for k, v in inputs.items()}
    return model.to(dtype).eval(), inputs


def randomize(attachment, scale=0.5):
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in attachment.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)


def attached(family, dtype=torch.float32, method=METHOD):
    model, inputs = build(family, dtype)
    attachment = pm.attach(model, method)
    randomize(attachment)
    return model, inputs, attachment


def logits(model, inputs):
    return model(**inputs).logits


def gradients(model, inputs, attachment):
    for parameter in attachment.parameters():
        parameter.grad = None
    out = logits(model, inputs)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(2)).to(out.dtype)
    (out * weight).sum().backward()
    assert not attachment.without_gradient()
    return torch.cat([parameter.grad.flatten() for parameter in attachment.parameters()])


@pytest.fixture(params=FAMILIES, ids=lambda family: family.__name__)
def family(request):
    return request.param


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_base_model_is_there_bit_for_bit(family, dtype):
    model, inputs = build(family, dtype)
    expected = logits(model, inputs)
    implementation = model.config._attn_implementation
    attachment = pm.attach(model, METHOD)
    randomize(attachment)
    assert not torch.allclose(logits(model, inputs), expected, atol=1e-2)
    assert all(parameter.dtype == torch.float32 for parameter in attachment.parameters())
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert {*map(id, trainable)} == {*map(id, attachment.parameters())}  # BLIP-2's query_tokens are frozen
    with attachment.disabled():
        assert torch.equal(logits(model, inputs), expected)
    attachment.detach()
    assert torch.equal(logits(model, inputs), expected)
    assert model.config._attn_implementation == implementation
    assert not [m for m in model.modules() if type(m).__module__.startswith("peft_methods")]


@pytest.mark.parametrize("reparameterization", [None, 6])
def test_save_load_copy_and_pickle(family, reparameterization, tmp_path):
    model, inputs, attachment = attached(family, method=pm.Prefix(length=LENGTH, reparameterization=reparameterization))
    expected = logits(model, inputs)
    attachment.save(tmp_path)
    fresh, _ = build(family)
    loaded = pm.load(fresh, tmp_path)
    assert torch.equal(logits(fresh, inputs), expected)
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    assert torch.equal(gradients(fresh, inputs, loaded), gradients(model, inputs, attachment))
    clone = copy.deepcopy(model)
    randomize(attachment, 0.1)
    assert torch.equal(logits(clone, inputs), expected)  # its own parameters, in its own layers
    stream = io.BytesIO()
    torch.save(clone, stream)
    stream.seek(0)
    again = torch.load(stream, weights_only=False)
    assert torch.equal(logits(again, inputs), expected)
    pm.attachments(again)[0].detach()
    assert torch.equal(logits(again, inputs), logits(*build(family)))


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("first", ["checkpointing", "attach"])
def test_checkpointing_gives_the_same_gradients(family, first, reentrant):
    model, inputs, attachment = attached(family)
    model.train()
    if family is git:
        inputs["use_cache"] = False  # or transformers' GIT stops in recomputation, whatever is attached
    expected = gradients(model, inputs, attachment)
    other = build(family)[0].train()
    options = {"use_reentrant": reentrant}
    if first == "checkpointing":
        other.gradient_checkpointing_enable(options)
    attachment = pm.attach(other, METHOD)
    randomize(attachment)
    if first == "attach":
        other.gradient_checkpointing_enable(options)
    # Reentrant checkpointing needs an input that requires a gradient, which transformers arranges.
    if reentrant:
        other.enable_input_require_grads()
    assert torch.allclose(gradients(other, inputs, attachment), expected, rtol=1e-4, atol=1e-5)


def test_gradients_in_bfloat16_are_those_in_float32_but_for_rounding(family):
    model, inputs, attachment = attached(family)
    exact = gradients(model, inputs, attachment)
    model, inputs, attachment = attached(family, torch.bfloat16)
    rounded = gradients(model, inputs, attachment)
    assert rounded.dtype == torch.float32
    assert (rounded - exact).norm() < 0.05 * exact.norm()


def test_generation_with_a_cache_is_recomputation_without(family):
    model, inputs, attachment = attached(family)
    if family is vit_gpt2:
        inputs = {"pixel_values": inputs["pixel_values"]}
    options = {"max_new_tokens": 6, "do_sample": False, "output_scores": True, "return_dict_in_generate": True}
    cached = model.generate(**inputs, **options, use_cache=True)
    recomputed = model.generate(**inputs, **options, use_cache=False)
    assert torch.equal(cached.sequences, recomputed.sequences)
    for a, b in zip(cached.scores, recomputed.scores, strict=True):
        assert torch.allclose(a, b, atol=1e-4)
    with attachment.disabled():
        base = model.generate(**inputs, **options)
    assert not torch.allclose(base.scores[0], cached.scores[0], atol=1e-2)


@pytest.mark.parametrize("family", [gpt2, git], ids=lambda family: family.__name__)
def test_compiled_forward(family):
    model, inputs, attachment = attached(family)
    expected = logits(model, inputs)
    with torch.no_grad():
        assert torch.allclose(torch.compile(model, backend="eager")(**inputs).logits, expected, atol=1e-5)
    torch._dynamo.reset()


def test_attention_weights_are_as_wide_as_without(family):
    """And in the first layer, where the queries and keys are the same, they have the same ratios."""
    model, inputs = build(family)
    if family is not git:
        model.set_attn_implementation("eager")

    def weights():
        out = model(**inputs, output_attentions=True)
        out = out.language_model_outputs if family is blip2 else out
        return out.decoder_attentions if family is vit_gpt2 else out.attentions

    before = weights()
    randomize(pm.attach(model, METHOD))
    after = weights()
    assert [w.shape for w in after] == [w.shape for w in before]
    share = after[0].sum(-1, keepdim=True)
    real = share.squeeze(-1) > 1e-6  # a query that is padding sees the prefix alone
    assert real.float().mean() > 0.8 and (share < 0.999).all()
    assert torch.allclose((after[0] / share)[real], before[0][real], atol=1e-5)
