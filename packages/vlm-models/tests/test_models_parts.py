"""Image captioners put together: from a ViT and a GPT-2 state dict, and by transformers from any two of its parts."""

import json

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor
from torchvision.models import VisionTransformer

import vlm_models
from vlm_models.families import EncoderDecoder

SIDE, WIDTH, LAYERS, HEADS = 16, 24, 2, 3


@pytest.fixture
def vit() -> VisionTransformer:
    torch.manual_seed(0)
    model = VisionTransformer(SIDE, 4, LAYERS, HEADS, WIDTH, 40, num_classes=10).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


@pytest.fixture
def pieces(tmp_path) -> tuple:
    """A GPT-2 state dict in a file as the homework has it, its encoder.json and vocab.bpe, and what they come from."""
    tokenizer = vlm_models.load("tiny-vit-gpt2").processor.tokenizer
    torch.manual_seed(1)
    gpt2 = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=4, n_positions=40)
    ).eval()
    torch.save(gpt2.transformer.state_dict(), tmp_path / "decoder_model.bin")
    (tmp_path / "encoder.json").write_text(json.dumps(tokenizer.get_vocab()))
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    lines = ["#version: 0.2", *(pair if isinstance(pair, str) else " ".join(pair) for pair in merges), ""]
    (tmp_path / "vocab.bpe").write_text("\n".join(lines))
    files = [str(tmp_path / name) for name in ("decoder_model.bin", "encoder.json", "vocab.bpe")]
    return files, gpt2, tokenizer


def build(encoder, pieces: tuple, **options) -> vlm_models.VLM:
    return vlm_models.from_parts(encoder, *pieces[0], decoder_heads=4, device="cpu", **options)


def pixels() -> Tensor:
    return torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(2))


def batch_of(images: Tensor) -> dict[str, Tensor]:
    ids = torch.tensor([[4, 7, 9, 11], [4, 8, 12, 5]])
    labels = ids.clone()
    labels[:, 0] = -100
    index = torch.tensor([1, 0])
    mask = torch.ones_like(ids)
    return {"pixel_values": images, "input_ids": ids, "attention_mask": mask, "labels": labels, "image_index": index}


def timm_forward(state: dict[str, Tensor], images: Tensor) -> Tensor:
    """A ViT as its paper has it, on weights under timm's names: tokens after the last norm."""
    x = F.conv2d(images, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=4)
    x = x.flatten(2).transpose(1, 2)
    x = torch.cat([state["cls_token"].expand(len(x), -1, -1), x], dim=1) + state["pos_embed"]

    def affine(x: Tensor, name: str) -> Tensor:
        return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (WIDTH,), state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)

    for layer in range(LAYERS):
        block = f"blocks.{layer}"
        heads = affine(norm(x, f"{block}.norm1"), f"{block}.attn.qkv").unflatten(-1, (3, HEADS, -1))
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        weights = (query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5).softmax(-1)
        x = x + affine((weights @ value).transpose(1, 2).flatten(2), f"{block}.attn.proj")
        x = x + affine(F.gelu(affine(norm(x, f"{block}.norm2"), f"{block}.mlp.fc1")), f"{block}.mlp.fc2")
    return norm(x, "norm")


def timm_state() -> dict[str, Tensor]:
    shapes = {"cls_token": (1, 1, WIDTH), "pos_embed": (1, 17, WIDTH), "patch_embed.proj.weight": (WIDTH, 3, 4, 4)}
    shapes |= {"patch_embed.proj.bias": (WIDTH,), "norm.weight": (WIDTH,), "norm.bias": (WIDTH,)}
    shapes |= {"head.weight": (10, WIDTH), "head.bias": (10,)}
    linear = {"attn.qkv": (3 * WIDTH, WIDTH), "attn.proj": (WIDTH, WIDTH), "mlp.fc1": (40, WIDTH)}
    linear["mlp.fc2"] = (WIDTH, 40)
    for layer in range(LAYERS):
        for name, shape in linear.items():
            shapes |= {f"blocks.{layer}.{name}.weight": shape, f"blocks.{layer}.{name}.bias": shape[:1]}
        for name in ("norm1", "norm2"):
            shapes |= {f"blocks.{layer}.{name}.{kind}": (WIDTH,) for kind in ("weight", "bias")}
    generator = torch.Generator().manual_seed(3)
    return {name: torch.randn(shape, generator=generator) * 0.3 for name, shape in shapes.items()}


def test_a_torchvision_vit_keeps_its_features(vit, pieces):
    vlm = build(vit, pieces)
    features = torch.stack(vlm.model.encoder(pixels()).last_hidden_state.unbind())
    x = vit._process_input(pixels())
    expected = vit.encoder(torch.cat([vit.class_token.expand(2, -1, -1), x], dim=1))
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)
    assert vlm.processor.image_processor.image_mean == (0.485, 0.456, 0.406)


def test_a_timm_vit_keeps_its_features(pieces, tmp_path):
    state = timm_state()
    torch.save(state, tmp_path / "vit.pth")
    vlm = build(str(tmp_path / "vit.pth"), pieces, encoder_heads=HEADS)
    expected = timm_forward(state, pixels())
    torch.testing.assert_close(vlm.model.encoder(pixels()).last_hidden_state, expected, rtol=1e-4, atol=1e-5)
    assert vlm.processor.image_processor.image_mean == (0.5, 0.5, 0.5)


def test_the_decoder_is_the_gpt2_it_was_where_it_sees_nothing(vit, pieces):
    vlm = build(vit, pieces)
    with torch.no_grad():
        for layer in vlm.model.decoder.transformer.h:
            layer.crossattention.c_proj.weight.zero_()
            layer.crossattention.c_proj.bias.zero_()
    batch = batch_of(pixels())
    logits = vlm.head(vlm.hidden_states(vlm.encode_images(batch), batch))
    torch.testing.assert_close(logits, pieces[1](batch["input_ids"]).logits, rtol=1e-4, atol=1e-5)


def test_the_vocabulary_gives_the_same_tokens(vit, pieces):
    tokenizer, expected = build(vit, pieces).processor.tokenizer, pieces[2]
    for text in ("a red circle", " what color is the square?", "Überall 3 cats, isn't it"):
        assert tokenizer(text).input_ids == expected(text).input_ids
        assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_it_learns_answers_and_is_loaded_again(vit, pieces, tmp_path):
    vlm = build(vit, pieces)
    assert vlm.notes[0] == "the decoder's cross-attention is new: it has to be trained"
    optimizer = torch.optim.AdamW(vlm.parameters(), lr=1e-2)
    batch = batch_of(pixels())
    losses = []
    for _ in range(30):
        loss, count = vlm(batch)
        optimizer.zero_grad()
        (loss / count).backward()
        optimizer.step()
        losses.append((loss / count).item())
    assert losses[-1] < 0.2 * losses[0]
    prompts = {**batch, "input_ids": batch["input_ids"][:, :1], "attention_mask": batch["attention_mask"][:, :1]}
    answers = [answer.token_ids for answer in vlm.generate(prompts, max_new_tokens=3)]
    assert answers == batch["input_ids"][:, 1:].tolist()
    vlm.save(str(tmp_path / "saved"))
    again = vlm_models.load(str(tmp_path / "saved"), device="cpu")
    assert again.family == "encoder_decoder"
    assert [answer.token_ids for answer in again.generate(prompts, max_new_tokens=3)] == answers
    assert again.processor.tokenizer("a red circle").input_ids == pieces[2]("a red circle").input_ids


def test_parts_that_are_something_else_are_told(vit, pieces, tmp_path):
    (decoder, vocabulary, merges), gpt2, _ = pieces
    weights = gpt2.transformer.state_dict()

    def told(message: str, encoder=vit, decoder=decoder, vocabulary=vocabulary) -> None:
        with pytest.raises(vlm_models.ModelError, match=message) as error:
            vlm_models.from_parts(encoder, decoder, vocabulary, merges, device="cpu")
        assert "\n" not in str(error.value)

    told("no ViT of timm or torchvision; it begins with weight", encoder=torch.nn.Linear(2, 2))
    told(
        "the encoder has an unknown weight 'blocks.0.ls1.gamma'", {**timm_state(), "blocks.0.ls1.gamma": torch.ones(3)}
    )
    told("no GPT-2 state dict", decoder={"model.weight": torch.ones(1)})
    told("the decoder lacks weight 'ln_f.bias'", decoder={k: v for k, v in weights.items() if k != "ln_f.bias"})
    told("transpose c_attn", decoder={k: v.T if "c_attn.weight" in k else v for k, v in weights.items()})
    told("cannot load .*nowhere.bin", decoder="nowhere.bin")
    torch.save(gpt2, tmp_path / "whole.bin")
    told("a pickle that holds more than tensors", decoder=tmp_path / "whole.bin")
    (tmp_path / "other.json").write_text("{}")
    told("lacks '<|endoftext|>'".replace("|", r"\|"), vocabulary=tmp_path / "other.json")


SMALL = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
ENCODERS = {
    "vit": transformers.ViTConfig,
    "deit": transformers.DeiTConfig,
    "beit": transformers.BeitConfig,
    "clip": transformers.CLIPVisionConfig,
}


@pytest.mark.parametrize("decoder_width", [24, 32], ids=["same width", "projected"])
@pytest.mark.parametrize("encoder", ENCODERS)
def test_any_encoder_of_transformers_gives_its_loss_and_gradients(encoder, decoder_width):
    torch.manual_seed(0)
    config = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(
        ENCODERS[encoder](**SMALL, image_size=SIDE, patch_size=4),
        transformers.GPT2Config(vocab_size=64, n_embd=decoder_width, n_layer=2, n_head=2, add_cross_attention=True),
    )
    model = transformers.VisionEncoderDecoderModel(config).double().eval()
    vlm = EncoderDecoder(model, None, encoder).eval()
    assert (hasattr(model, "enc_to_dec_proj")) == (decoder_width != 24)
    batch = batch_of(pixels().double())
    loss, count = vlm(batch)
    loss.backward()
    found = {key: one.grad.clone() for key, one in model.named_parameters() if one.grad is not None}
    model.zero_grad()
    images = batch["pixel_values"][batch["image_index"]]
    logits = model(pixel_values=images, decoder_input_ids=batch["input_ids"]).logits
    expected = F.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), reduction="sum")
    expected.backward()
    assert count == 6 and loss.item() == pytest.approx(expected.item(), rel=1e-9)
    of_class = {key: one.grad for key, one in model.named_parameters() if one.grad is not None}
    assert found.keys() == of_class.keys()
    for key, one in of_class.items():
        torch.testing.assert_close(found[key], one, rtol=1e-9, atol=1e-9)
    assert vlm.targets("vision") and vlm.targets("language")
