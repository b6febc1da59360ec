"""Hugging Face PEFT as the oracle: same outputs, same gradients, and files that go both ways."""

import copy
import warnings

import pytest
import torch

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

import peft_methods as pm  # noqa: E402

TOKENS = torch.tensor([[1, 5, 7, 2, 9, 3], [4, 4, 8, 6, 1, 0]])


def qwen2():
    config = transformers.Qwen2Config(
        vocab_size=20, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=True)  # fmt: skip
    return transformers.Qwen2ForCausalLM(config), {"input_ids": TOKENS}


def gpt2():
    config = transformers.GPT2Config(
        vocab_size=20, n_embd=16, n_layer=2, n_head=2, n_positions=16, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0,
        bos_token_id=0, eos_token_id=0)  # fmt: skip
    return transformers.GPT2LMHeadModel(config), {"input_ids": TOKENS}


def opt():
    config = transformers.OPTConfig(
        vocab_size=20, hidden_size=16, ffn_dim=24, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=16, word_embed_proj_dim=16, dropout=0.0)  # fmt: skip
    return transformers.OPTForCausalLM(config), {"input_ids": TOKENS}


def vit_gpt2():
    vit = transformers.ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24,
                                 image_size=8, patch_size=4)  # fmt: skip
    config = copy.deepcopy(gpt2()[0].config)
    config.is_decoder = config.add_cross_attention = True
    model = transformers.VisionEncoderDecoderModel(
        encoder=transformers.ViTModel(vit), decoder=transformers.GPT2LMHeadModel(config))  # fmt: skip
    return model, {"pixel_values": torch.randn(2, 3, 8, 8), "decoder_input_ids": TOKENS}


def blip2():
    vision = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
              "image_size": 8, "patch_size": 4}  # fmt: skip
    qformer = {"vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
               "intermediate_size": 24, "encoder_hidden_size": 16, "hidden_dropout_prob": 0.0,
               "attention_probs_dropout_prob": 0.0}  # fmt: skip
    config = transformers.Blip2Config(
        vision_config=vision, qformer_config=qformer, text_config=opt()[0].config, num_query_tokens=3,
        image_token_index=19)  # fmt: skip
    tokens = torch.cat([torch.full((2, 3), 19), TOKENS], dim=1)
    pixels = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return transformers.Blip2ForConditionalGeneration(config), {"input_ids": tokens, "pixel_values": pixels}


FAMILIES = {
    "qwen2": (qwen2, ["q_proj", "v_proj", "down_proj"]),
    "gpt2": (gpt2, ["c_attn", "mlp.c_proj"]),
    "opt": (opt, ["q_proj", "fc2"]),
    "blip2": (blip2, "all-linear"),
    "vit_gpt2": (vit_gpt2, ["c_attn", "q_proj", "fc1"]),  # Conv1D and Linear under one adapter
}


def build(family, dtype=torch.float32):
    torch.manual_seed(0)
    make, targets = FAMILIES[family]
    model, inputs = make()
    inputs = {k: v.to(dtype) if v.is_floating_point() else v for k, v in inputs.items()}
    return model.to(dtype).eval(), inputs, targets


def randomize(parameters):
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in parameters:
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)


def attached(family, dtype=torch.float32):
    model, inputs, targets = build(family, dtype)
    attachment = pm.attach(model, pm.LoRA(rank=4, alpha=6, targets=targets))
    randomize(attachment.parameters())
    return model, inputs, attachment


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("dtype", "relative"), [(torch.float32, 1e-6), (torch.float64, 1e-12), (torch.bfloat16, 5e-2)])
def test_ours_in_peft(family, dtype, relative, tmp_path):
    """Same logits, same gradients, from the file that we wrote."""
    model, inputs, attachment = attached(family, dtype)
    attachment.save(tmp_path)
    theirs = peft.PeftModel.from_pretrained(build(family, dtype)[0], tmp_path, is_trainable=True).eval()
    if dtype == torch.float64:  # peft computes in the dtype of the adapter
        theirs = theirs.double()
    parameters = {n: p for n, p in theirs.named_parameters() if p.requires_grad}
    expected_names = {f"base_model.model.{n}.default.weight" for n in attachment.state_dict()}
    assert parameters.keys() == expected_names
    ours_out, theirs_out = model(**inputs).logits, theirs(**inputs).logits
    assert (ours_out - theirs_out).norm() <= relative * theirs_out.norm()
    weight = torch.randn(ours_out.shape, generator=torch.Generator().manual_seed(2)).to(dtype)
    for out in (ours_out, theirs_out):
        (out * weight).sum().backward()
    gradients = [p.grad for _, p in attachment.named_parameters()]
    theirs_gradients = [parameters[f"base_model.model.{n}.default.weight"].grad for n in attachment.state_dict()]
    # peft gives no gradient at all where the loss does not depend on a module (the Q-Former's first text layers)
    assert [g is None for g in gradients] == [g is None for g in theirs_gradients]
    ours = torch.cat([g.flatten() for g in gradients if g is not None])
    reference = torch.cat([g.flatten() for g in theirs_gradients if g is not None])
    assert (ours - reference).norm() <= 3 * relative * reference.norm()


@pytest.mark.parametrize("rank_stabilized", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_peft_in_ours(family, rank_stabilized, tmp_path):
    model, inputs, targets = build(family)
    config = peft.LoraConfig(
        r=4, lora_alpha=6, use_rslora=rank_stabilized, lora_dropout=0.1, target_modules=targets,
        fan_in_fan_out=family == "gpt2")  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peft.get_peft_model(model, config).eval()
    randomize(p for n, p in theirs.named_parameters() if "lora_" in n)
    theirs.save_pretrained(tmp_path)
    ours, _, _ = build(family)
    attachment = pm.load(ours, tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(ours(**inputs).logits, theirs(**inputs).logits, rtol=1e-5, atol=1e-6)
    assert attachment.trainable == sum(p.numel() for n, p in theirs.named_parameters() if "lora_" in n)
    assert all(p.requires_grad for p in attachment.parameters()) and attachment.method.dropout == 0.1


def test_narrowed_choices_of_peft(tmp_path):
    model, inputs, _ = build("opt")
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], exclude_modules=r".*layers\.0\..*v_proj")
    theirs = peft.get_peft_model(model, config).eval()
    randomize(p for n, p in theirs.named_parameters() if "lora_" in n)
    theirs.save_pretrained(tmp_path)
    ours, _, _ = build("opt")
    assert len(pm.load(ours, tmp_path).modules) == 3
    torch.testing.assert_close(ours(**inputs).logits, theirs(**inputs).logits, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_guarantees_on_real_models(family):
    model, inputs, attachment = attached(family)
    reference = build(family)[0](**inputs).logits
    trainable = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trainable == attachment.state_dict().keys()  # BLIP-2's query_tokens are frozen with the rest
    with torch.no_grad():
        active = model(**inputs).logits
        assert not torch.allclose(active, reference, atol=1e-3)
        attachment.merge()
        torch.testing.assert_close(model(**inputs).logits, active, rtol=1e-4, atol=1e-4)
        with attachment.disabled():
            assert torch.equal(model(**inputs).logits, reference)
        attachment.detach()
        assert torch.equal(model(**inputs).logits, reference)


@pytest.mark.parametrize("family", ["qwen2", "gpt2", "opt"])
def test_generation_and_gradient_checkpointing(family):
    model, inputs, attachment = attached(family)
    with torch.no_grad():
        tokens = model.generate(**inputs, max_new_tokens=4, do_sample=False)
        attachment.merge()
        assert torch.equal(model.generate(**inputs, max_new_tokens=4, do_sample=False), tokens)
    attachment.unmerge()
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
        model(**inputs, labels=TOKENS).loss.backward()
        gradients.append([p.grad.clone() for p in attachment.parameters()])
        for parameter in attachment.parameters():
            parameter.grad = None
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
