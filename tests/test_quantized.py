"""Training on 4-bit and 8-bit bases with every method of peft-methods that can, and what it leaves as it was."""

import pytest
import torch
from subjects import METHODS

import peft_methods as pm
import vlm_data
import vlm_models

STEPS = 6


class Quantized:
    """A quantized model as `METHODS` takes it, and one batch."""

    def __init__(self, name: str, quantization: str, rows: list[dict]):
        self.vlm = vlm_models.load(name, quantization, device="cpu")
        self.model, self.linear = self.vlm.model, self.vlm.targets("language")
        self.batch = vlm_data.collator(self.vlm.processor, self.vlm.family)(rows)

    def loss(self) -> torch.Tensor:
        loss, count = self.vlm(self.batch)
        return loss / count

    def frozen(self) -> dict[str, torch.Tensor]:
        return {name: p.detach().clone() for name, p in self.model.named_parameters() if not p.requires_grad}


@pytest.mark.parametrize(
    ("quantization", "method"),
    [*(("nf4", method) for method in METHODS if method != "full"), ("int8", "lora"), ("int8", "prefix")],
)
def test_every_method_learns_on_a_quantized_base(name, quantization, method, scene_rows, tmp_path):
    subject = Quantized(name, quantization, scene_rows[:6])
    unattached = subject.loss().item()
    torch.manual_seed(0)
    attachment = pm.attach(subject.model, METHODS[method](subject))
    before = subject.frozen()
    subject.vlm.train()
    rate = 3e-2 if "prefix" in method else 3e-3
    optimizer = torch.optim.AdamW(attachment.parameter_groups(rate), weight_decay=0.0)
    attachment.bind(optimizer)
    torch.manual_seed(1)  # of dropout
    losses = []
    for _ in range(STEPS):
        loss = subject.loss()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert min(losses[1:]) < losses[0]
    assert all(torch.equal(before[name], one) for name, one in subject.frozen().items())
    subject.vlm.eval()
    with attachment.disabled():
        assert subject.loss().item() == unattached

    attachment.save(tmp_path / "adapter")
    fresh = Quantized(name, quantization, scene_rows[:6])
    pm.load(fresh.model, tmp_path / "adapter")
    assert fresh.loss().item() == pytest.approx(subject.loss().item(), rel=1e-6)


def test_training_all_of_a_quantized_model_is_refused(name, scene_rows):
    subject = Quantized(name, "nf4", scene_rows[:2])
    with pytest.raises((pm.TargetError, ValueError), match="4"):
        pm.attach(subject.model, pm.FullFineTuning())
