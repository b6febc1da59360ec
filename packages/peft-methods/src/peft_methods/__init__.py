"""Parameter-efficient fine-tuning methods from scratch, on torch alone."""

from .adapter import Adapter
from .attachment import Attachment, attach, attachments, load
from .errors import AdapterError
from .lora import LoRA
from .merging import combine
from .method import Method
from .targets import TargetError
from .tuning import BitFit, FullFineTuning, NormTuning

__all__ = [
    "Adapter",
    "AdapterError",
    "Attachment",
    "BitFit",
    "FullFineTuning",
    "LoRA",
    "Method",
    "NormTuning",
    "TargetError",
    "attach",
    "attachments",
    "combine",
    "load",
]
