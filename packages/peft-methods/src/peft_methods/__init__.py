"""Parameter-efficient fine-tuning methods from scratch, on torch alone."""

from .attachment import Attachment, attach, load
from .errors import AdapterError
from .lora import LoRA
from .targets import TargetError

__all__ = ["AdapterError", "Attachment", "LoRA", "TargetError", "attach", "load"]
