"""What the tests of several packages run on: tiny models with a fixed batch, and every method of peft-methods."""

import copy

import torch
from torch import Tensor, nn

import peft_methods as pm
import vlm_data
import vlm_models


class Plain(nn.Module):
    """Torch's own encoder, with a parameter at the root."""

    def __init__(self):
        super().__init__()
        self.start = nn.Parameter(torch.randn(1, 1, 16))
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x + self.start))


class Subject:
    """A model, and how to run it on a fixed batch: padded, and with images where the model sees."""

    def __init__(self, name: str, dtype: str):
        torch.manual_seed(0)
        if name == "plain":
            self.vlm, self.model = None, Plain().to(getattr(torch, dtype)).eval()
            self.batch, self.linear = torch.randn(3, 7, 16, dtype=getattr(torch, dtype)), ["linear1", "linear2"]
        else:
            self.vlm = vlm_models.load(name, device="cpu", dtype=dtype).eval()
            self.model, self.linear = self.vlm.model, self.vlm.targets("language")
            rows = vlm_data.open("scenes", split="families", size=2).to_list()
            self.batch = vlm_data.collator(self.vlm.processor, self.vlm.family)([rows[0], rows[1], rows[-1]])

    def copy(self) -> "Subject":
        shared = [] if self.vlm is None else [self.vlm.processor]  # slow to copy
        return copy.deepcopy(self, {id(one): one for one in shared})

    def logits(self) -> Tensor:
        if self.vlm is None:
            return self.model(self.batch)
        return self.vlm.head(self.vlm.hidden_states(self.vlm.encode_images(self.batch), self.batch))

    def gradients(self, attachment: pm.Attachment) -> dict[str, Tensor]:
        self.logits().float().logsumexp(-1).mean().backward()
        gradients = {n: p.grad.clone() for n, p in attachment.named_parameters() if p.grad is not None}
        for parameter in attachment.parameters():
            parameter.grad = None
        return gradients


METHODS = {
    "lora": lambda s: pm.LoRA(rank=4, targets=s.linear),
    "rslora": lambda s: pm.LoRA(rank=4, targets=s.linear, rank_stabilized=True, bias="targets"),
    "dora": lambda s: pm.LoRA(rank=4, targets=s.linear, dora=True),
    "grit": lambda s: pm.GRIT(rank=4, targets=s.linear),
    "houlsby": lambda s: pm.Adapter("houlsby", size=4),
    "pfeiffer": lambda s: pm.Adapter("pfeiffer", size=4, activation="gelu"),
    "parallel": lambda s: pm.Adapter("parallel", size=4),
    "prefix": lambda s: pm.Prefix(length=3),
    "prefix of an MLP": lambda s: pm.Prefix(length=3, reparameterization=5),
    "full": lambda s: pm.FullFineTuning(),
    "bitfit": lambda s: pm.BitFit(),
    "norm": lambda s: pm.NormTuning(),
}


@torch.no_grad()
def move(parameters) -> None:
    """As training would."""
    for parameter in parameters:
        parameter += 0.02 * torch.randn_like(parameter)
