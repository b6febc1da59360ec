"""The tiny trained checkpoints that ship inside this package, a folder each."""

from vlm_models.tiny.folders import TINY, tiny_folder

__all__ = ["TINY", "tiny_folder"]
