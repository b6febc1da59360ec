"""Parameter-efficient fine-tuning methods from scratch, on torch alone."""

from .adapter import Adapter
from .attachment import Attachment, attach, attachments, from_peft, load
from .errors import AdapterError
from .grit import GRIT, measuring
from .lora import LoRA
from .merging import combine
from .method import Method
from .prefix import Prefix, fold_prefix, initialize_prefix
from .targets import TargetError
from .tuning import BitFit, FullFineTuning, NormTuning

__all__ = [
    "Adapter",
    "AdapterError",
    "Attachment",
    "BitFit",
    "FullFineTuning",
    "GRIT",
    "LoRA",
    "Method",
    "NormTuning",
    "Prefix",
    "TargetError",
    "attach",
    "attachments",
    "combine",
    "fold_prefix",
    "from_peft",
    "initialize_prefix",
    "load",
    "measuring",
]
