"""Which modules can have a prefix, of what shape, and which have one by default.

Causal self-attention is that of a language model: it is what transformers marks `is_causal`, GIT's text attention, and
the self-attention of torch's decoder layers or, in a model that has none of these, of its encoder layers.
"""

from torch import nn

from ..targets import TargetError
from ..tree import bare, named_modules
from .attention import PrefixAttention
from .injection import GitPrefix, InterfacePrefix, calls_interface, is_git
from .torch_attention import TorchPrefix

KIND = (
    "transformers attention module (one that calls its attention interface, or GIT's text attention) or "
    "nn.MultiheadAttention without bias_k and add_zero_attn"
)
_HEAD_DIM = ("head_dim", "attention_head_size", "key_value_proj_dim")
_HEADS = ("num_heads", "num_attention_heads", "n_heads")


def part_for(module: nn.Module) -> type[PrefixAttention] | None:
    """The class of the part that goes around this module, if any does."""
    base = bare(module)
    if isinstance(base, nn.MultiheadAttention):
        return TorchPrefix if base.bias_k is None and not base.add_zero_attn else None
    if is_git(base):
        return GitPrefix
    return InterfacePrefix if calls_interface(base) and shape_of(base) is not None else None


def shape_of(module: nn.Module) -> tuple[int, int] | None:
    """Heads of the keys and values, and features of each; None where the module does not say."""
    base = bare(module)
    config = getattr(base, "config", None)
    head_dim = _first(base, _HEAD_DIM)
    heads = _first(base, _HEADS) or _first(config, _HEADS)
    if head_dim is None or heads is None:
        return None
    return heads // getattr(base, "num_key_value_groups", 1), head_dim


def causal_attention(model: nn.Module) -> dict[str, nn.Module]:
    """The modules that have a prefix by default, by name. Raises TargetError where there are none."""
    modules = named_modules(model)
    causal = {name: module for name, module in modules.items() if _is_causal(module)}
    for layer in (nn.TransformerDecoderLayer, nn.TransformerEncoderLayer):
        inside = [bare(module).self_attn for module in modules.values() if isinstance(bare(module), layer)]
        causal = causal or {name: module for name, module in modules.items() if module in inside}
    if not causal:
        raise TargetError(
            f"targets='auto': finds no causal self-attention in {type(model).__name__}; give a list of names, each of "
            f"a {KIND}"
        )
    return causal


def _is_causal(module: nn.Module) -> bool:
    part = part_for(module)
    return part is GitPrefix or part is InterfacePrefix and getattr(bare(module), "is_causal", False)


def _first(holder, names: tuple[str, ...]):
    return next((value for name in names if (value := getattr(holder, name, None)) is not None), None)
