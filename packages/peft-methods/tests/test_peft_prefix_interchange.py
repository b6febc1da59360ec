"""Prefix tuning of Hugging Face PEFT as the oracle: same outputs, and files that go both ways."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

import peft_methods as pm  # noqa: E402

LENGTH = 3
TOKENS = torch.tensor([[5, 7, 2, 9, 3, 6], [4, 8, 6, 11, 2, 10]])
MASKS = {"none": None, "left": [[1] * 6, [0, 0, 1, 1, 1, 1]], "right": [[1] * 6, [1, 1, 1, 1, 0, 0]]}
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
VISION = {**SIZES, "num_hidden_layers": 1, "image_size": 8, "patch_size": 4}
ROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}


def opt_config():
    return transformers.OPTConfig(
        vocab_size=20, ffn_dim=24, max_position_embeddings=32, word_embed_proj_dim=16, dropout=0.0, **SIZES
    )


def qwen2():
    grouped = SIZES | {"num_attention_heads": 4, "num_key_value_heads": 2}
    return transformers.Qwen2ForCausalLM(transformers.Qwen2Config(vocab_size=20, **grouped))


def gpt2(**options):
    config = transformers.GPT2Config(
        vocab_size=20, n_embd=16, n_layer=2, n_head=2, n_positions=32, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0,
        bos_token_id=0, eos_token_id=0, **options)  # fmt: skip
    return transformers.GPT2LMHeadModel(config)


def opt():
    return transformers.OPTForCausalLM(opt_config())


def qwen2_vl():
    text = {**SIZES, "vocab_size": 30, "num_key_value_heads": 1, "max_position_embeddings": 64, "rope_parameters": ROPE}
    vision = {"depth": 1, "embed_dim": 16, "hidden_size": 16, "num_heads": 2, "mlp_ratio": 2, "patch_size": 4}
    config = transformers.Qwen2VLConfig(text_config=text, vision_config=vision, image_token_id=25)
    return transformers.Qwen2VLForConditionalGeneration(config)


def blip2():
    qformer = {"vocab_size": 20, **SIZES, "encoder_hidden_size": 16}
    config = transformers.Blip2Config(
        vision_config=VISION, qformer_config=qformer, text_config=opt_config(), num_query_tokens=2,
        image_token_index=19)  # fmt: skip
    return transformers.Blip2ForConditionalGeneration(config)


def git():
    config = transformers.GitConfig(vision_config=VISION, vocab_size=20, **SIZES)
    return transformers.GitForCausalLM(config)


def vit_gpt2():
    encoder = transformers.ViTModel(transformers.ViTConfig(**VISION))
    decoder = gpt2(is_decoder=True, add_cross_attention=True)
    return transformers.VisionEncoderDecoderModel(encoder=encoder, decoder=decoder)


SHARED = [qwen2, gpt2, opt, qwen2_vl, blip2]


def build(make, dtype=torch.float32):
    torch.manual_seed(0)
    model = make()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.25)
    return model.to(dtype).eval()


def inputs_of(make, mask="none", dtype=torch.float32):
    inputs = {"input_ids": TOKENS}
    if MASKS[mask]:
        inputs["attention_mask"] = torch.tensor(MASKS[mask])
    if make is blip2:  # peft fails on it without a mask
        inputs["input_ids"] = torch.cat([torch.full((2, 2), 19), TOKENS], dim=1)
        text = inputs.get("attention_mask", torch.ones_like(TOKENS))
        inputs["attention_mask"] = torch.cat([torch.ones(2, 2, dtype=torch.long), text], dim=1)
        inputs["pixel_values"] = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    return inputs


def attached(make, dtype=torch.float32, **options):
    model = build(make, dtype)
    attachment = pm.attach(model, pm.Prefix(length=LENGTH, **{"shift_positions": True, **options}))
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in attachment.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    return model, attachment


def config_in(folder):
    return json.loads((folder / "adapter_config.json").read_text())


def theirs_from(folder, make, dtype=torch.float32):
    return peft.PeftModel.from_pretrained(build(make, dtype), folder).eval()


def real(out, inputs):
    mask = inputs.get("attention_mask")
    return out.logits if mask is None else out.logits[mask.bool()]


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("make", SHARED)
def test_ours_in_peft(make, mask, tmp_path):
    """With the positions that peft gives to tokens, learned or rotary; wherever tokens are real."""
    model, attachment = attached(make)
    attachment.save(tmp_path, base_model="some/model")
    assert config_in(tmp_path)["peft_type"] == "PREFIX_TUNING"
    inputs = inputs_of(make, mask)
    theirs = real(theirs_from(tmp_path, make)(**inputs), inputs)
    assert torch.allclose(real(model(**inputs), inputs), theirs, atol=1e-5)
    with attachment.disabled():
        assert not torch.allclose(real(model(**inputs), inputs), theirs, atol=0.05)


@pytest.mark.parametrize("make", SHARED)
def test_ours_in_peft_in_bfloat16(make, tmp_path):
    model, attachment = attached(make, torch.bfloat16)
    attachment.save(tmp_path)
    inputs = inputs_of(make, "left", torch.bfloat16)
    ours, theirs = (real(m(**inputs), inputs) for m in (model, theirs_from(tmp_path, make, torch.bfloat16)))
    assert (ours - theirs).norm() < 0.02 * theirs.norm()


@pytest.mark.parametrize("projection", [False, True])
@pytest.mark.parametrize("make", SHARED)
def test_peft_in_ours(make, projection, tmp_path):
    """Trained by peft for a step, its projection folded by peft's own save; trainable again here, and back."""
    theirs = build(make)
    config = getattr(theirs.config, "text_config", theirs.config)
    heads = getattr(config, "num_key_value_heads", config.num_attention_heads)
    config = peft.PrefixTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=LENGTH, prefix_projection=projection, encoder_hidden_size=8,
        num_layers=2, token_dim=heads * config.hidden_size // config.num_attention_heads,
        num_attention_heads=heads)  # fmt: skip
    theirs = peft.get_peft_model(theirs, config)
    inputs = inputs_of(make, "left")
    expected = theirs.eval()(**inputs)
    theirs.save_pretrained(tmp_path)
    model = build(make)
    attachment = pm.load(model, tmp_path)
    assert torch.allclose(real(model(**inputs), inputs), real(expected, inputs), atol=1e-5)
    model(**inputs).logits.sum().backward()
    assert not attachment.without_gradient()
    attachment.save(tmp_path / "again")
    file = "adapter_model.safetensors"
    assert torch.equal(
        load_file(tmp_path / "again" / file)["prompt_embeddings"], load_file(tmp_path / file)["prompt_embeddings"]
    )


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (qwen2, {"shift_positions": False}),
        (qwen2, {"reparameterization": 4}),
        (qwen2, {"within": r".*\.0\..*"}),
        (git, {}),
        (vit_gpt2, {}),
    ],
)
def test_what_peft_would_compute_differently_is_written_in_our_own_format(make, options, tmp_path):
    model, attachment = attached(make, **options)
    attachment.save(tmp_path)
    assert config_in(tmp_path)["peft_type"] == "peft_methods.Prefix"
    again = pm.load(build(make), tmp_path)
    assert again.method == attachment.method
    state = attachment.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in again.state_dict().items())


def test_a_folded_prefix_goes_to_peft(tmp_path):
    model, attachment = attached(gpt2, reparameterization=4)
    expected = model(TOKENS).logits
    pm.fold_prefix(attachment)
    attachment.save(tmp_path)
    assert torch.allclose(theirs_from(tmp_path, gpt2)(TOKENS).logits, expected, atol=1e-5)


@pytest.fixture
def saved(tmp_path):
    attached(qwen2)[1].save(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("fields", "make", "message"),
    [
        ({"modules_to_save": ["lm_head"]}, qwen2, "modules_to_save=.*not supported"),
        ({"num_transformer_submodules": 2}, qwen2, "encoder-decoder"),
        ({}, gpt2, r"prompt_embeddings: shape \[3, 32\] where \[length, 2 layers \* 2 \* 2 heads \* 8\]"),
        ({}, git, "GIT masks images"),
        ({}, vit_gpt2, "encoder-decoder"),
        ({}, lambda: torch.nn.Linear(2, 2), "no causal self-attention"),
    ],
)
def test_what_cannot_be_represented_is_refused(saved, fields, make, message):
    (saved / "adapter_config.json").write_text(json.dumps(config_in(saved) | fields))
    model = build(make)
    with pytest.raises(pm.AdapterError, match=message):
        pm.load(model, saved)
    assert pm.attachments(model) == []


def test_unknown_keys_are_refused(saved):
    file = saved / "adapter_model.safetensors"
    prompt = load_file(file)
    save_file(prompt | {"prompt_embedding": torch.zeros(2)}, file)
    with pytest.raises(pm.AdapterError, match="'prompt_embedding'.*nearest: prompt_embeddings"):
        pm.load(build(qwen2), saved)
    assert pm.load(build(qwen2), saved, strict=False).trainable == prompt["prompt_embeddings"].numel()
    save_file({"other": torch.zeros(2)}, file)
    with pytest.raises(pm.AdapterError, match="prompt_embeddings"):
        pm.load(build(qwen2), saved, strict=False)
