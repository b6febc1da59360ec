"""The attention of packed rows: SDPA with a mask, and for long rows on a GPU FlexAttention, which goes by blocks.

Most of a packed row a token does not see: what comes later, and the other branches of the tree. A mask spares SDPA none
of it; FlexAttention leaves out each block of keys that no token of a block of queries sees (Dong et al. 2024, "Flex
Attention: A Programming Model for Generating Optimized Attention Kernels").

The mask that a model gets carries the blocks along, and transformers' "sdpa" is made to look for them. Who replaces the
mask, as a prefix in front of the keys does, has one without blocks, and so SDPA.
"""

import warnings
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from vlm_models.packing import Packing, seen_until

DEVICES = ("cuda",)  # on a CPU FlexAttention has no gradients
LONG = 1024  # tokens of a row: in shorter ones attention is a small part of the work, and the kernel takes compiling


def packed_mask(packing: Packing, dtype: torch.dtype) -> Tensor:
    """Additive attention mask [packed, 1, width, width] of packed rows, with its blocks where they are of use."""
    mask = packing.mask(dtype)
    if mask.device.type in DEVICES and mask.shape[-1] >= LONG and not torch.compiler.is_compiling():
        AttentionInterface.register("sdpa", _attention)
        mask.blocks = _blocks(packing.ends)
    return mask


def _blocks(ends: Tensor) -> BlockMask:
    def sees(row: Tensor, head: Tensor, token: Tensor, other: Tensor) -> Tensor:
        return (other <= token) & (token < ends[row, other])

    rows, width = ends.shape
    return create_block_mask(sees, rows, None, width, width, device=ends.device)


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """transformers' attention function "sdpa", by FlexAttention if the mask has blocks."""
    blocks = getattr(attention_mask, "blocks", None)
    by_mask = blocks is None or options.get("dropout") or torch.is_autocast_enabled(query.device.type)
    if by_mask or not _agrees(query.device, query.dtype, query.shape[1], key.shape[1], query.shape[3]):
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    output = _flex()(query, key, value, block_mask=blocks, scale=options.get("scaling"), enable_gqa=True)
    return output.transpose(1, 2).contiguous(), None


@cache
def _flex() -> Any:
    return torch.compile(flex_attention, dynamic=True)  # one kernel for all widths


@cache
def _agrees(device: torch.device, dtype: torch.dtype, heads: int, key_heads: int, dim: int) -> bool:
    """Whether FlexAttention has a kernel here that gives SDPA's outputs and gradients; tried once on a small tree.

    What it compiles to depends on the GPU, the versions of torch and Triton, and the model's shapes.
    """
    width = 200  # no multiple of a block
    ends = torch.full((2, width), width, device=device)
    ends[:, 100:150] = 150  # a branch that the tokens behind it do not see
    generator = torch.Generator(device).manual_seed(0)

    def drawn(heads: int) -> Tensor:
        return torch.randn(2, heads, width, dim, device=device, dtype=dtype, generator=generator)

    inputs, upstream = [drawn(count).requires_grad_() for count in (heads, key_heads, key_heads)], drawn(heads)
    try:
        with torch.enable_grad():
            outputs = [
                _flex()(*inputs, block_mask=_blocks(ends), enable_gqa=True),
                F.scaled_dot_product_attention(*inputs, seen_until(ends)[:, None], enable_gqa=True),
            ]
        flex, sdpa = ((output, *torch.autograd.grad(output, inputs, upstream)) for output in outputs)
        apart = max(((a - b).abs().max() / b.abs().max()).item() for a, b in zip(flex, sdpa, strict=True))
        problem = "" if apart <= (0.05 if dtype.itemsize == 2 else 1e-5) else f"its results are apart by {apart:.1g}"
    except Exception as error:  # of many kinds: no Triton, no compiler, too little shared memory
        problem = f"{type(error).__name__}: {error}".splitlines()[0]
    if problem:
        warnings.warn(f"attention is computed with a mask: FlexAttention does not work here ({problem})", stacklevel=2)
    return not problem
