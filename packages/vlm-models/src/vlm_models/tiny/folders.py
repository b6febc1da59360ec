"""Where the tiny checkpoints are."""

from pathlib import Path

# name: what it is a small version of
TINY = {
    "tiny-git": "microsoft/git-base",
    "tiny-blip2": "Salesforce/blip2-opt-2.7b",
    "tiny-qwen2-vl": "Qwen/Qwen2-VL-2B-Instruct",
    "tiny-vit-gpt2": "nlpconnect/vit-gpt2-image-captioning",
}


def tiny_folder(name: str) -> Path:
    """The folder of a tiny checkpoint, as `save_pretrained` wrote it."""
    return Path(__file__).parent / name
