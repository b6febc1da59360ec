"""GRIT in transformers' Trainer, on a tiny language model that learns to count."""

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM, Trainer, TrainingArguments

import peft_methods as pm

torch.manual_seed(0)
sizes = {"vocab_size": 32, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
model = Qwen2ForCausalLM(Qwen2Config(**sizes, **heads, initializer_range=0.3))  # in the place of a trained one
starts = torch.randint(0, 20, (64, 1))
rows = [{"input_ids": row, "labels": row} for row in starts + torch.arange(12)]  # 7, 8, 9, …

attachment = pm.attach(model, pm.GRIT(rank=8, alpha=32, rebalance_every=10))
optimizer = torch.optim.AdamW(attachment.parameters(), lr=1e-2)
attachment.bind(optimizer)  # the natural gradient is made as the optimizer's step begins
arguments = TrainingArguments("trained", max_steps=30, per_device_train_batch_size=16, save_strategy="no", report_to=[])
trainer = Trainer(model, arguments, train_dataset=rows, optimizers=(optimizer, None))
with attachment.disabled():
    before = trainer.evaluate(rows)["eval_loss"]
trainer.train()
after = trainer.evaluate(rows)["eval_loss"]
print(f"loss {before:.2f} → {after:.2f} with {attachment.trainable:,} of {attachment.total:,} parameters")
attachment.save("trained/adapter")
