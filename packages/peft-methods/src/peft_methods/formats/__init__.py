"""How an attachment is written to files and read again: in the format of Hugging Face PEFT where it has one."""

from torch import Tensor, nn

from ..errors import AdapterError
from ..files import AdapterFiles
from ..lora import LoRA
from ..method import Method
from . import lora, native, prefix


def write(attachment, base_model: str | None) -> AdapterFiles:
    form = lora if isinstance(attachment.method, LoRA) else prefix if prefix.fits(attachment) else native
    return AdapterFiles(*form.write(attachment, base_model))


def read(files: AdapterFiles, model: nn.Module, strict: bool) -> tuple[Method, dict[str, Tensor]]:
    """The method to attach to `model` and the tensors to load into it, by our names. Raises AdapterError."""
    if native.is_ours(files.config):
        return native.read(files.config, files.tensors, model, strict)
    forms = {"LORA": lora, "PREFIX_TUNING": prefix}
    if (kind := files.config.get("peft_type")) not in forms:
        raise AdapterError(f"peft_type={kind!r}: only {' and '.join(forms)} adapters of PEFT can be loaded")
    return forms[kind].read(files.config, files.tensors, model, strict)
