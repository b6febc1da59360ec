"""A prefix in the attention modules of transformers.

Those that call the attention function which their configuration names are given, while they run, a configuration that
names `_attend`: it gets keys and values as they are after rotation and caching, puts the prefix in front, and calls the
function that the model has. So nothing of the model is changed, and what the model is set to later is what is called.

The text attention of GIT multiplies its matrices itself. It asks a cache for its keys and values, and is given one that
puts the prefix in front of what the real one returns.
"""

import inspect
import sys

import torch
from torch import Tensor, nn

from ..errors import AdapterError
from ..tree import bare
from .attention import PrefixAttention, Prefixes

_NAME = "peft_methods.prefix"


def calls_interface(module: nn.Module) -> bool:
    """Whether a module looks its attention function up under the name in its configuration."""
    code = getattr(inspect.unwrap(type(module).forward), "__code__", None)
    return code is not None and {"ALL_ATTENTION_FUNCTIONS", "_attn_implementation"} <= {*code.co_names}


def is_git(module: nn.Module) -> bool:
    return isinstance(module, getattr(sys.modules.get("transformers.models.git.modeling_git"), "GitSelfAttention", ()))


class InterfacePrefix(PrefixAttention):
    """Around a module that `calls_interface`."""

    def __init__(self, *args):
        super().__init__(*args)
        _register()

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        _register()  # in a process that has only unpickled the model

    def attend(self, host: nn.Module, prefixes: Prefixes, *args, **kwargs):
        config = host.config
        host.config = _Injected(config, prefixes)
        try:
            return host(*args, **kwargs)
        finally:
            host.config = config


class _Injected:
    """The configuration of an attention module while it runs: its own, but for the attention function."""

    _attn_implementation = _NAME

    def __init__(self, config, prefixes: Prefixes):
        self.config, self.prefixes = config, prefixes

    def __getattr__(self, name: str):
        return getattr(self.config, name)


def _register() -> None:
    sys.modules["transformers.modeling_utils"].AttentionInterface.register(_NAME, _attend)


def _attend(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask, **kwargs):
    """What the model's attention function returns; its weights without those of the prefix."""
    injected, prefixes = module.config, module.config.prefixes
    name = injected.config._attn_implementation
    if problem := _unsupported(name, query, mask, kwargs):
        raise AdapterError(
            f"{prefixes.name}: a prefix cannot be put in front of {problem} with attn_implementation={name!r}; "
            "call model.set_attn_implementation('sdpa')"
        )
    is_causal = kwargs.get("is_causal")
    is_causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    if name == "sdpa" and mask is None and is_causal and query.shape[2] > 1:
        # What SDPA goes by in place of a mask, and would apply to the prefix too.
        mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=key.device).tril()[None, None]
    key, value, mask = prefixes.extended(key, value, mask)
    if kwargs.get("position_bias") is not None:
        kwargs["position_bias"] = nn.functional.pad(kwargs["position_bias"], (prefixes.length, 0))
    modeling = sys.modules[type(module).forward.__module__]
    function = modeling.ALL_ATTENTION_FUNCTIONS.get_interface(name, modeling.eager_attention_forward)
    module.config = injected.config  # flash attention looks its own name up
    try:
        output, weights = function(module, query, key, value, mask, **kwargs)
    finally:
        module.config = injected
    return output, None if weights is None else weights[..., prefixes.length :]


def _unsupported(name: str, query: Tensor, mask, kwargs: dict) -> str | None:
    if mask is not None and not isinstance(mask, Tensor) or kwargs.get("cache") is not None:
        return "masks or caches of this kind"
    if "flash" not in name:
        return None
    if kwargs.get("sliding_window") is not None:
        return "a sliding window, out of which it would fall,"
    # A single row without a mask is several sequences to flash attention if its positions start again.
    positions = kwargs.get("position_ids") if mask is None and len(query) == 1 else None
    if kwargs.get("cu_seq_lens_k") is not None or positions is not None and bool((positions.diff() != 1).any()):
        return "packed sequences"
    return None


class GitPrefix(PrefixAttention):
    """Around GIT's text attention, which adds a float mask."""

    def insert(self) -> None:
        # First, so that what transformers collects as attention weights is as wide as ever.
        self._hook = bare(self).register_forward_hook(self._without_prefix, prepend=True)

    def remove(self) -> None:
        self._hook.remove()

    def attend(self, host, prefixes, hidden_states: Tensor, attention_mask=None, past_key_values=None, **kwargs):
        cache = _Cache(prefixes, past_key_values, attention_mask)
        if attention_mask is not None:
            attention_mask = nn.functional.pad(attention_mask, (prefixes.length, 0))
        return host(hidden_states, attention_mask, cache, **kwargs)

    def _without_prefix(self, module: nn.Module, args: tuple, output: tuple) -> tuple | None:
        if self.active:
            context, weights = output
            return context, weights[..., self.length :]


class _Cache:
    """What one attention module sees of the cache: the prefixes in front of what is in it and of what comes in."""

    def __init__(self, prefixes: Prefixes, cache, mask: Tensor | None):
        self.prefixes, self.cache, self.mask = prefixes, cache, mask

    def update(self, key: Tensor, value: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        if self.cache is not None:
            key, value = self.cache.update(key, value, layer)
        return self.prefixes.extended(key, value, self.mask)[:2]
