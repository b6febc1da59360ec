"""Parameter-efficient fine-tuning methods from scratch, on torch alone."""

from .attachment import Attachment, attach, attachments, load
from .errors import AdapterError
from .lora import LoRA
from .merging import combine
from .targets import TargetError
from .tuning import BitFit, FullFineTuning, NormTuning

__all__ = [
    "AdapterError",
    "Attachment",
    "BitFit",
    "FullFineTuning",
    "LoRA",
    "NormTuning",
    "TargetError",
    "attach",
    "attachments",
    "combine",
    "load",
]
