"""How adapters are written down: as Hugging Face PEFT does where it can say the same, otherwise in our own format."""

from torch import nn

from ..errors import AdapterError
from ..files import AdapterFiles
from ..lora import LoRA
from ..method import Method
from . import grit, lora, native, prefix

_PEFT = {"LORA": lora, "PREFIX_TUNING": prefix}


def write(attachment, base_model: str | None) -> AdapterFiles:
    method = attachment.method
    if isinstance(method, LoRA) and lora.fits(attachment):
        return AdapterFiles(*lora.write(attachment, base_model), grit.metadata_of(method))
    form = prefix if prefix.fits(attachment) else native
    return AdapterFiles(*form.write(attachment, base_model))


def read(files: AdapterFiles, model: nn.Module, strict: bool) -> tuple[Method, dict]:
    """The method, made for `model`, and its tensors by our names. Raises AdapterError."""
    if native.is_ours(files.config):
        return native.read(files.config, files.tensors)
    method, state = _form(files).read(files.config, files.tensors, model, strict)
    return grit.method_of(method, files.metadata), state


def read_method(files: AdapterFiles) -> Method:
    """The method of files of PEFT, for any model with these names. Raises AdapterError."""
    return _form(files).method_in(files.config, files.tensors)


def _form(files: AdapterFiles):
    if (kind := files.config.get("peft_type")) not in _PEFT:
        raise AdapterError(f"peft_type={kind!r}: only {' and '.join(_PEFT)} adapters of PEFT can be loaded")
    return _PEFT[kind]
