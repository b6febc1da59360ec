"""GRIT in files: LoRA for everyone, and GRIT's own options in the tensor file's metadata, for going on with it."""

import json
from collections.abc import Mapping
from dataclasses import asdict, fields

from ..errors import AdapterError
from ..grit import GRIT
from ..lora import LoRA

_KEY = "peft_methods.grit"
_LORA = {field.name for field in fields(LoRA)}


def metadata_of(method: LoRA) -> dict[str, str]:
    """By name; nothing for plain LoRA."""
    if not isinstance(method, GRIT):
        return {}
    return {_KEY: json.dumps({name: value for name, value in asdict(method).items() if name not in _LORA})}


def method_of(lora: LoRA, metadata: Mapping[str, str]) -> LoRA:
    """The GRIT that was written, or `lora` itself. Raises AdapterError for options that GRIT does not have."""
    if _KEY not in metadata:
        return lora
    try:
        return GRIT(**{name: getattr(lora, name) for name in _LORA}, **json.loads(metadata[_KEY]))
    except (TypeError, ValueError) as error:
        raise AdapterError(f"metadata {_KEY}: {error}; remove it from the file to load plain LoRA") from None
