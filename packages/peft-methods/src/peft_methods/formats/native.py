"""Our own format, for what Hugging Face PEFT has no words for: the method's options and its tensors by our names."""

from dataclasses import asdict
from typing import Any

from torch import Tensor

from ..adapter import Adapter
from ..errors import AdapterError
from ..grit import GRIT
from ..lora import LoRA
from ..method import Method
from ..prefix import Prefix
from ..tuning import BitFit, FullFineTuning, NormTuning

_METHODS = {cls.__name__: cls for cls in (Adapter, BitFit, FullFineTuning, GRIT, LoRA, NormTuning, Prefix)}
_TYPE = "peft_methods."


def is_ours(config: dict[str, Any]) -> bool:
    return str(config.get("peft_type")).startswith(_TYPE)


def write(attachment, base_model: str | None) -> tuple[dict[str, Any], dict[str, Tensor]]:
    config = {"peft_type": _TYPE + type(attachment.method).__name__, "base_model_name_or_path": base_model}
    tensors = {name: parameter.detach() for name, parameter in attachment.named_parameters()}
    return config | {"options": asdict(attachment.method)}, tensors


def read(config: dict[str, Any], tensors: dict[str, Tensor]) -> tuple[Method, dict[str, Tensor]]:
    name = config["peft_type"].removeprefix(_TYPE)
    return method_of(name, config.get("options", {})), tensors


def method_of(name: str, options: dict[str, Any]) -> Method:
    """The method of this name; AdapterError if there is none or the options are not its own."""
    if name not in _METHODS:
        raise AdapterError(f"method {name!r} is unknown; known: {', '.join(_METHODS)}")
    try:
        return _METHODS[name](**options)
    except (TypeError, ValueError) as error:
        raise AdapterError(f"{name}: {error}") from None
