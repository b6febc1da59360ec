"""What only an accelerator can show: `nox -s gpu` runs it; elsewhere it is skipped."""

import pytest
import torch

import peft_methods
import vlm_data
import vlm_models
from vlm_models import block_attention

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.mark.parametrize("quantization", ["none", "nf4", "int8"])
def test_lora_learns_on_cuda(name, quantization, scene_rows):
    vlm = vlm_models.load(name, quantization=quantization)
    assert vlm.device.type == "cuda" and vlm.model.dtype == torch.bfloat16
    attachment = peft_methods.attach(vlm.model, peft_methods.LoRA(rank=8, targets=vlm.targets()))
    batch = vlm.to_device(vlm_data.collator(vlm.processor, vlm.family)(scene_rows[:16]))
    optimizer = torch.optim.AdamW(attachment.parameters(), lr=3e-3)
    losses = []
    for _ in range(20):
        loss, count = vlm(batch)
        (loss / count).backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append((loss / count).item())
    assert losses[-1] < losses[0]


def test_cuda_answers_as_the_cpu_does(name, scene_rows):
    texts = []
    for device in ("cpu", "cuda"):
        vlm = vlm_models.load(name, device=device, dtype="float32")
        collate = vlm_data.collator(vlm.processor, vlm.family)
        answers = vlm.generate(vlm.to_device(collate.prompts(scene_rows[:16])), max_new_tokens=12)
        texts.append([answer.text for answer in answers])
    assert texts[0] == texts[1]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_flex_attention_has_the_gradients_of_a_mask(dtype, scene_rows, monkeypatch):
    losses, gradients, kernels = [], [], []
    flex = block_attention._flex()
    monkeypatch.setattr(
        block_attention, "_flex", lambda: lambda *args, **kwargs: kernels.append(1) or flex(*args, **kwargs)
    )
    for long in (10**9, 0):
        monkeypatch.setattr(block_attention, "LONG", long)
        assert not kernels
        vlm = vlm_models.load("tiny-qwen2-vl", device="cuda", dtype=dtype)
        torch.manual_seed(0)
        attachment = peft_methods.attach(vlm.model, peft_methods.LoRA(rank=8, targets=vlm.targets()))
        loss, count = vlm(vlm.to_device(vlm_data.collator(vlm.processor, vlm.family)(scene_rows[:16])))
        (loss / count).backward()
        losses.append(loss / count)
        gradients.append(torch.cat([one.grad.flatten() for one in attachment.parameters() if one.grad is not None]))
    assert kernels
    torch.testing.assert_close(*losses, rtol=0.02 if dtype == "bfloat16" else 1e-4, atol=0)
    assert torch.cosine_similarity(*gradients, dim=0) > 0.99
