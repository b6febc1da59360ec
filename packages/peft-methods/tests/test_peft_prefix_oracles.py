"""What a prefix computes: attention by hand, layer by layer, and whole models that have it in their real caches."""

import copy

import pytest
import torch
import torch.nn.functional as F

transformers = pytest.importorskip("transformers")

from transformers.models.bert import modeling_bert  # noqa: E402
from transformers.models.blip_2 import modeling_blip_2  # noqa: E402
from transformers.models.git import modeling_git  # noqa: E402
from transformers.models.gpt2 import modeling_gpt2  # noqa: E402
from transformers.models.opt import modeling_opt  # noqa: E402
from transformers.models.qwen2 import modeling_qwen2  # noqa: E402
from transformers.models.t5 import modeling_t5  # noqa: E402
from transformers.models.vit import modeling_vit  # noqa: E402

import peft_methods as pm  # noqa: E402

LENGTH, WIDTH, TOKENS = 3, 16, 5
SIZES = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24}
VISION = {**SIZES, "num_hidden_layers": 1, "image_size": 8, "patch_size": 4}
GPT2 = {"n_embd": WIDTH, "n_head": 4, "n_layer": 2, "n_positions": 32, "vocab_size": 20, "resid_pdrop": 0,
        "embd_pdrop": 0, "attn_pdrop": 0}  # fmt: skip
X = torch.randn(2, TOKENS, WIDTH, generator=torch.Generator().manual_seed(1)).double()
IMAGE = torch.randn(2, 7, WIDTH, generator=torch.Generator().manual_seed(2)).double()
TEXT = torch.tensor([[5, 7, 2, 9, 3, 6], [4, 8, 6, 11, 2, 10]])
CAUSAL = torch.ones(TOKENS, TOKENS, dtype=torch.bool).tril().expand(2, 1, -1, -1).clone()
PADDED = CAUSAL.clone()
PADDED[0, :, :, :2] = False  # the first two queries see nothing but the prefix


# Each gives the module, what it is called with besides X, and from the module's own projections q, k and v
# [batch, tokens, heads · head_dim], how queries are scaled and a bias of the scores.
def opt_attention():
    config = transformers.OPTConfig(ffn_dim=24, word_embed_proj_dim=WIDTH, dropout=0.0, **SIZES)
    return modeling_opt.OPTAttention(config, layer_idx=0), {}, lambda m: (m.q_proj(X), m.k_proj(X), m.v_proj(X))


def gpt2_attention():
    config = transformers.GPT2Config(**GPT2)
    return modeling_gpt2.GPT2Attention(config, layer_idx=0), {}, lambda m: m.c_attn(X).split(WIDTH, dim=-1)


def gpt2_cross_attention():
    module = modeling_gpt2.GPT2Attention(transformers.GPT2Config(**GPT2), is_cross_attention=True, layer_idx=0)
    return module, {"encoder_hidden_states": IMAGE}, lambda m: (m.q_attn(X), *m.c_attn(IMAGE).split(WIDTH, dim=-1))


def qwen2_attention():
    config = transformers.Qwen2Config(**SIZES, num_key_value_heads=2)
    unrotated = torch.ones(2, TOKENS, 4).double(), torch.zeros(2, TOKENS, 4).double()
    module = modeling_qwen2.Qwen2Attention(config, layer_idx=0)
    return module, {"position_embeddings": unrotated}, lambda m: (m.q_proj(X), m.k_proj(X), m.v_proj(X))


def vit_attention():
    module = modeling_vit.ViTAttention(transformers.ViTConfig(**VISION))
    return module, {}, lambda m: (m.q_proj(X), m.k_proj(X), m.v_proj(X))


def qformer_attention():
    config = transformers.Blip2QFormerConfig(**SIZES, attention_probs_dropout_prob=0.0)
    module = modeling_blip_2.Blip2QFormerMultiHeadAttention(config)
    return module, {}, lambda m: (m.query(X), m.key(X), m.value(X))


def qformer_cross_attention():
    config = transformers.Blip2QFormerConfig(**SIZES, encoder_hidden_size=WIDTH, attention_probs_dropout_prob=0.0)
    module = modeling_blip_2.Blip2QFormerMultiHeadAttention(config, is_cross_attention=True)
    return module, {"encoder_hidden_states": IMAGE}, lambda m: (m.query(X), m.key(IMAGE), m.value(IMAGE))


def git_attention():
    module = modeling_git.GitSelfAttention(transformers.GitConfig(vision_config=VISION, **SIZES), layer_idx=0)
    return module, {}, lambda m: (m.query(X), m.key(X), m.value(X))


def bert_attention():
    module = modeling_bert.BertSelfAttention(transformers.BertConfig(**SIZES, attention_probs_dropout_prob=0.0))
    return module, {}, lambda m: (m.query(X), m.key(X), m.value(X))


def t5_attention():
    config = transformers.T5Config(d_model=WIDTH, d_kv=4, num_heads=4, is_decoder=True, dropout_rate=0.0)
    module = modeling_t5.T5Attention(config, has_relative_attention_bias=True, layer_idx=0, is_causal=True)
    return module, {}, lambda m: (m.q(X), m.k(X), m.v(X))


DECODERS = [opt_attention, gpt2_attention, qwen2_attention]
OTHERS = [gpt2_cross_attention, vit_attention, qformer_attention, qformer_cross_attention, bert_attention]
CASES = [
    *((make, how, mask) for make in DECODERS for how in ("eager", "sdpa") for mask in ("none", "causal", "padded")),
    *((make, how, "none") for make in OTHERS for how in ("eager", "sdpa")),
    *((t5_attention, how, mask) for how in ("eager", "sdpa") for mask in ("causal", "padded")),
    *((git_attention, None, mask) for mask in ("none", "causal", "padded")),
]


def by_hand(module, projected, prefix, seen, scale, bias=0.0):
    q, k, v = (x.unflatten(-1, (-1, 4)).transpose(1, 2) for x in projected)
    keys, values = (p.transpose(0, 1).expand(2, -1, -1, -1) for p in (prefix.keys, prefix.values))
    k, v = torch.cat([keys, k], 2), torch.cat([values, v], 2)
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    scores = torch.einsum("bhqd,bhkd->bhqk", q, k) * scale
    scores = scores + F.pad(torch.as_tensor(bias).expand_as(scores[..., LENGTH:]), (LENGTH, 0))
    scores[..., LENGTH:].masked_fill_(~seen, -torch.inf)
    out = torch.einsum("bhqk,bhkd->bqhd", scores.softmax(-1), v).flatten(2)
    last = [getattr(module, name) for name in ("out_proj", "c_proj", "o_proj", "o") if hasattr(module, name)]
    return last[0](out) if last else out


@pytest.mark.parametrize(("make", "implementation", "mask"), CASES)
def test_attention_by_hand(make, implementation, mask):
    torch.manual_seed(0)
    module, inputs, project = make()
    if implementation:
        module.config._attn_implementation = implementation
    model = torch.nn.ModuleDict({"attention": module}).double().eval()
    attachment = pm.attach(model, pm.Prefix(length=LENGTH, targets=["attention"]))
    prefix = attachment.modules["attention"].prefix
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.4)
    projected = project(module)
    seen = torch.ones(2, 1, TOKENS, projected[1].shape[1], dtype=torch.bool)
    if mask != "none":
        seen = PADDED if mask == "padded" else CAUSAL
        additive = torch.zeros(seen.shape).double().masked_fill(~seen, torch.finfo(torch.float64).min)
        inputs["mask" if make is t5_attention else "attention_mask"] = seen if implementation == "sdpa" else additive
    elif make in DECODERS:
        inputs["attention_mask"] = None  # which SDPA takes for causal in a module that is
        seen = CAUSAL if implementation == "sdpa" else seen
    bias = module.compute_bias(TOKENS, TOKENS) if make is t5_attention else 0.0
    expected = by_hand(module, projected, prefix, seen, 1.0 if make is t5_attention else 0.5, bias)
    out = model.attention(X, **inputs)[0]
    assert torch.allclose(out, expected, atol=1e-5 if implementation == "eager" else 1e-10)  # softmax in float32


def test_flash_attention_gets_its_own_masks(monkeypatch):
    """By its contract: [batch, keys] marks real keys; causal is aligned with the last key."""

    def flash(module, query, key, value, attention_mask, is_causal=None, scaling=None, **kwargs):
        assert module.config._attn_implementation == "flash_attention_2"
        seen = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool).tril(key.shape[2] - query.shape[2])[
            None, None
        ]
        if attention_mask is not None:
            assert attention_mask.shape == (2, key.shape[2])
            seen = seen & attention_mask[:, None, None].bool()
        return F.scaled_dot_product_attention(query, key, value, seen, scale=scaling).transpose(1, 2), None

    functions = transformers.AttentionInterface._global_mapping
    monkeypatch.setitem(functions, "flash_attention_2", flash)
    module, _, project = opt_attention()
    module.config._attn_implementation = "flash_attention_2"
    model = torch.nn.ModuleDict({"attention": module}).double().eval()
    attachment = pm.attach(model, pm.Prefix(length=LENGTH, targets=["attention"]))
    prefix = attachment.modules["attention"].prefix
    expected = by_hand(module, project(module), prefix, CAUSAL, 0.5)
    assert torch.allclose(model.attention(X, attention_mask=None)[0], expected, atol=1e-10)
    padding = torch.ones(2, TOKENS, dtype=torch.long)
    padding[0, :2] = 0
    expected = by_hand(module, project(module), prefix, PADDED, 0.5)
    assert torch.allclose(model.attention(X, attention_mask=padding)[0], expected, atol=1e-10)
    restarted = torch.tensor([[0, 1, 0, 1, 2]])
    for inputs in ({"sliding_window": 4}, {"cu_seq_lens_k": torch.tensor([0, 5])}, {"position_ids": restarted}):
        with pytest.raises(pm.AdapterError, match=r"attention: .*set_attn_implementation\('sdpa'\)"):
            model.attention(X[:1], attention_mask=None, **inputs)
    assert type(module.config) is transformers.OPTConfig  # also after an error


def randomize(parameters, scale):
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in parameters:
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)


def build(model):
    randomize([p for p in model.parameters() if p.ndim > 1], 0.25)
    return model.eval()


def text_model(name, **options):
    if name == "gpt2":
        return build(transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT2, **options)))
    if name == "opt":
        config = transformers.OPTConfig(
            vocab_size=20, ffn_dim=24, max_position_embeddings=32, word_embed_proj_dim=WIDTH, dropout=0.0, **SIZES
        )
        return build(transformers.OPTForCausalLM(config))
    config = transformers.Qwen2Config(vocab_size=20, num_key_value_heads=2, max_position_embeddings=64, **SIZES)
    return build(transformers.Qwen2ForCausalLM(config))


def qwen2_vl():
    text = {**SIZES, "vocab_size": 30, "num_key_value_heads": 2, "max_position_embeddings": 64,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 0]}}  # fmt: skip
    vision = {"depth": 1, "embed_dim": 16, "hidden_size": 16, "num_heads": 2, "mlp_ratio": 2, "patch_size": 4}
    config = transformers.Qwen2VLConfig(
        text_config=text, vision_config=vision, image_token_id=25, video_token_id=26, vision_start_token_id=27
    )
    model = build(transformers.Qwen2VLForConditionalGeneration(config))
    tokens = torch.cat([torch.zeros(2, 2), torch.tensor([27.0] + [25.0] * 4).expand(2, -1), TEXT], dim=1).long()
    inputs = {
        "input_ids": tokens,
        "mm_token_type_ids": (tokens == 25).long(),
        "attention_mask": torch.ones_like(tokens),
    }
    inputs["attention_mask"][1, :2] = 0
    inputs["pixel_values"] = torch.randn(32, 3 * 2 * 16, generator=torch.Generator().manual_seed(0))
    return model, inputs | {"image_grid_thw": torch.tensor([[1, 4, 4]] * 2)}


def cache_of(attachment):
    """The prefix as tokens that were read before, in the model's own cache."""
    cache = transformers.DynamicCache()
    for layer, part in enumerate(attachment.modules.values()):
        keys, values = (p.detach().transpose(0, 1).expand(2, -1, -1, -1) for p in part.prefix())
        cache.update(keys.clone(), values.clone(), layer)
    return cache


@pytest.mark.parametrize("padding", ["none", "left", "right"])
@pytest.mark.parametrize("name", ["qwen2", "gpt2", "opt", "qwen2_vl", "vit_gpt2"])
def test_a_prefix_is_a_cache_that_moves_no_positions(name, padding):
    """The positions are given to the oracle, as the model would count them without the cache."""
    torch.manual_seed(0)
    mask = torch.ones(2, 6, dtype=torch.long)
    if padding != "none":
        mask[1, slice(0, 2) if padding == "left" else slice(4, 6)] = 0
    positions = torch.arange(6).expand(2, -1)
    kind = ""
    if name == "qwen2_vl":
        model, inputs = qwen2_vl()
        mask = torch.cat([inputs["attention_mask"][:, :7], mask], dim=1)
        inputs["attention_mask"] = mask
        given = {name: inputs[name] for name in ("input_ids", "mm_token_type_ids", "image_grid_thw", "attention_mask")}
        positions, _ = model.model.get_rope_index(**given)
    elif name == "vit_gpt2":
        decoder = text_model("gpt2", add_cross_attention=True, is_decoder=True)
        encoder = build(transformers.ViTModel(transformers.ViTConfig(**VISION)))
        model, kind = transformers.VisionEncoderDecoderModel(encoder=encoder, decoder=decoder).eval(), "decoder_"
        inputs = {"pixel_values": torch.randn(2, 3, 8, 8), "decoder_input_ids": TEXT, "decoder_attention_mask": mask}
    else:
        model, inputs = text_model(name), {"input_ids": TEXT, "attention_mask": mask}
        if name == "opt":
            positions = (mask.cumsum(1) * mask - 1).long()
    expected_base = copy.deepcopy(model)
    attachment = pm.attach(model, pm.Prefix(length=LENGTH))
    randomize(attachment.parameters(), 0.5)
    cache = cache_of(attachment)
    if name == "vit_gpt2":
        cache = transformers.EncoderDecoderCache(cache, transformers.DynamicCache())
    given = {f"{kind}attention_mask": F.pad(mask, (LENGTH, 0), value=1), f"{kind}position_ids": positions}
    expected = expected_base(**inputs | given, past_key_values=cache).logits
    real = mask.bool()
    assert torch.allclose(model(**inputs).logits[real], expected[real], atol=1e-5)
    if padding == "none" and name != "qwen2_vl":
        inputs.pop(f"{kind}attention_mask")  # the mask of SDPA is None then
        assert torch.allclose(model(**inputs).logits, expected, atol=1e-5)


@pytest.mark.parametrize("padding", ["none", "left", "right"])
@pytest.mark.parametrize("name", ["qwen2", "gpt2", "opt"])
def test_initialized_with_shifted_positions_a_model_has_read_the_tokens(name, padding):
    """It goes on as if they were in front; other prefixes on the model have their part in it."""
    model = text_model(name)
    older = pm.attach(model, pm.Prefix(length=2))
    randomize(older.parameters(), 0.3)
    before = TEXT[:1]
    whole = model(torch.cat([before.expand(2, -1), TEXT], dim=1)).logits[:, 6:]
    attachment = pm.attach(model, pm.Prefix(length=6, shift_positions=True))
    pads = {"none": (0, 0), "left": (2, 0), "right": (0, 2)}[padding]
    rows, mask = F.pad(before, pads), F.pad(torch.ones_like(before), pads)
    positions = {"position_ids": (mask.cumsum(1) - 1).clamp(min=0)}
    short = torch.zeros_like(mask)
    short[:, -1] = 1
    inputs = {"input_ids": torch.cat([rows, rows]), "attention_mask": torch.cat([short, mask])}
    inputs["position_ids"] = positions["position_ids"].expand(2, -1)
    pm.initialize_prefix(attachment, **inputs)  # of the second row: the first is too short
    # With the older prefix on the outside, the tokens still see it, and the new prefix has seen it too.
    assert torch.allclose(model(TEXT).logits, whole, atol=1e-4)
    with attachment.disabled():
        assert not torch.allclose(model(TEXT).logits, whole, atol=0.05)


def test_initialization_of_git_is_by_its_image():
    config = transformers.GitConfig(vision_config=VISION, vocab_size=20, **SIZES)
    model = build(transformers.GitForCausalLM(config))
    older = pm.attach(model, pm.Prefix(length=2))
    randomize(older.parameters(), 0.3)
    attachment = pm.attach(model, pm.Prefix(length=4))
    attention = model.git.encoder.layer[1].attention.self
    seen = {}
    hook = attention.key.register_forward_hook(lambda module, args, output: seen.update(keys=output))
    pixels = torch.randn(1, 3, 8, 8)
    with attachment.disabled():
        model(input_ids=TEXT[:1], pixel_values=pixels)
    hook.remove()
    pm.initialize_prefix(attachment, input_ids=TEXT[:1], pixel_values=pixels)
    keys = attachment.modules["git.encoder.layer.1.attention.self"].prefix.keys
    assert torch.allclose(keys.flatten(1), seen["keys"][0, :4], atol=1e-6)


def test_a_static_cache_is_one():
    """Its keys are as long as the cache may become."""
    model = text_model("qwen2")
    randomize(pm.attach(model, pm.Prefix(length=LENGTH)).parameters(), 0.5)
    cache = transformers.StaticCache(model.config, max_cache_len=10)
    expected = model(TEXT).logits
    parts = [model(TEXT[:, tokens], past_key_values=cache).logits for tokens in (slice(0, 4), slice(4, 5), slice(5, 6))]
    assert torch.allclose(torch.cat(parts, dim=1), expected, atol=1e-5)


def test_what_the_model_is_set_to_later_is_what_runs():
    model = text_model("qwen2")
    randomize(pm.attach(model, pm.Prefix(length=LENGTH)).parameters(), 0.5)
    expected = model(TEXT).logits
    model.set_attn_implementation("eager")
    assert torch.allclose(model(TEXT).logits, expected, atol=1e-5)


def test_masks_that_are_no_tensors_are_refused():
    """As flex attention's, which torch compiles."""
    model = torch.nn.ModuleDict({"attention": opt_attention()[0].double()})
    pm.attach(model, pm.Prefix(length=LENGTH, targets=["attention"]))
    with pytest.raises(pm.AdapterError, match=r"attention: .*masks .*of this kind.*set_attn_implementation\('sdpa'\)"):
        model.attention(X, attention_mask=object())


def test_a_pickled_model_runs_where_nothing_was_attached(monkeypatch, tmp_path):
    model = text_model("gpt2")
    randomize(pm.attach(model, pm.Prefix(length=LENGTH)).parameters(), 0.5)
    torch.save(model, tmp_path / "model.pt")
    # As in a new process, that knows of the attention functions of transformers alone.
    functions = transformers.AttentionInterface._global_mapping
    monkeypatch.setattr(transformers.AttentionInterface, "_global_mapping", {
        name: function for name, function in functions.items() if "peft_methods" not in name
    })  # fmt: skip
    again = torch.load(tmp_path / "model.pt", weights_only=False)
    assert torch.equal(again(TEXT).logits, model(TEXT).logits)


def test_encoders_and_cross_attention_by_name():
    encoder = transformers.ViTModel(transformers.ViTConfig(**VISION))
    decoder = text_model("gpt2", add_cross_attention=True, is_decoder=True)
    model = transformers.VisionEncoderDecoderModel(encoder=encoder, decoder=decoder).eval()
    auto = pm.attach(model, pm.Prefix())
    assert list(auto.modules) == [f"decoder.transformer.h.{i}.attn" for i in range(2)]
    auto.detach()
    named = pm.attach(model, pm.Prefix(length=LENGTH, targets=["crossattention", "attention"]))
    assert len(named.modules) == 3
    randomize(named.parameters(), 0.5)
    model.config.decoder_start_token_id = model.generation_config.decoder_start_token_id = 1
    options = {"max_new_tokens": 5, "do_sample": False, "output_scores": True, "return_dict_in_generate": True}
    pixels = torch.randn(2, 3, 8, 8)
    cached, without = (model.generate(pixels, **options, use_cache=cache) for cache in (True, False))
    assert torch.allclose(torch.stack(cached.scores), torch.stack(without.scores), atol=1e-5)
    with pytest.raises(
        pm.TargetError, match="matches 'encoder.layers.0.mlp', a ViTMLP: only a transformers attention module"
    ):
        pm.attach(model, pm.Prefix(targets=["mlp"]))
