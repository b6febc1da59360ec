"""LoRA in a bare torch loop: attach, train, save, load again, merge."""

import torch
from torch import nn

import peft_methods as pm

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 3))
x = torch.randn(256, 16)
y = (x @ torch.randn(16, 3)).argmax(1)  # what is to be learned

attachment = pm.attach(model, pm.LoRA(rank=8, alpha=16, targets=["0", "2"]))  # everything else is frozen
optimizer = torch.optim.AdamW(attachment.parameters(), lr=1e-2)
attachment.bind(optimizer)
for _ in range(100):
    loss = nn.functional.cross_entropy(model(x), y)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()

adapted = model(x)
accuracy = (adapted.argmax(1) == y).float().mean().item()
with attachment.disabled():
    before = (model(x).argmax(1) == y).float().mean().item()
print(f"accuracy {before:.2f} → {accuracy:.2f} with {attachment.trainable:,} of {attachment.total:,} parameters")

attachment.save("adapter")  # files that Hugging Face PEFT reads too
attachment.detach()  # the model as it was
again = pm.load(model, "adapter")
again.merge()  # as fast as the base
torch.testing.assert_close(model(x), adapted, atol=1e-4, rtol=1e-4)
