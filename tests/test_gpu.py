"""What only an accelerator can show: `nox -s gpu` runs it; elsewhere it is skipped."""

import pytest
import torch

import peft_methods
import vlm_data
import vlm_models

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
