"""Caption images and answer questions with a trained run; the command is `vlm-infer`."""

from vlm_infer.errors import InferError

__all__ = ["InferError"]
