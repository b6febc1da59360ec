"""A chat model of a class that vlm-models does not list: LLaVA 1.5, here tiny and untrained.

One line makes `load`, `plan` and `skeleton` know it. Whether `Chat` suits it is shown by comparing with its own forward
pass; where a class differs, derive from `Chat` and write what differs.
"""

import torch
from transformers import AutoModelForImageTextToText, LlavaConfig

import vlm_models
from vlm_models.families import Chat
from vlm_models.load import FAMILIES

FAMILIES["llava"] = Chat  # by the `model_type` of its configuration

size = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
config = LlavaConfig(
    text_config={"model_type": "llama", "vocab_size": 64, **size},
    vision_config={"model_type": "clip_vision_model", "image_size": 16, "patch_size": 8, **size},
    image_token_index=60,
    vision_feature_layer=-1,
)
print(len(vlm_models.skeleton(config).targets("language")), "linear layers for LoRA")

torch.manual_seed(0)
model = AutoModelForImageTextToText.from_config(config).eval()
vlm = Chat(model, None, "tiny-llava").eval()
ids = torch.tensor([[60] * 4 + [5, 6, 7, 8], [60] * 4 + [5, 9, 10, 11]])  # 2 x 2 patches, a question, an answer
labels = ids.clone()
labels[:, :6] = -100
image = torch.randn(1, 3, 16, 16)  # both rows are about it: it is encoded once
batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels, "pixel_values": image}
loss, tokens = vlm({**batch, "image_index": torch.tensor([0, 0])})
own = model(**{**batch, "pixel_values": image.repeat(2, 1, 1, 1)}).loss * tokens
print(f"loss {loss:.6f}, by its own forward pass {own:.6f}")
torch.testing.assert_close(loss, own)
