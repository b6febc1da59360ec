"""A prefix in `nn.MultiheadAttention`, whose formula is computed here, since nothing can be put into torch's own."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import AdapterError
from .attention import PrefixAttention, Prefixes


class TorchPrefix(PrefixAttention):
    """Around an `nn.MultiheadAttention` without `bias_k` and `add_zero_attn`: takes and returns what that does."""

    def attend(
        self,
        base: nn.MultiheadAttention,
        prefixes: Prefixes,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        if is_causal and attn_mask is None:
            raise AdapterError(f"{self.name}: is_causal=True is only a hint; give the attn_mask too, as torch asks")
        if unbatched := query.ndim == 2:
            query, key, value = (x.unsqueeze(0 if base.batch_first else 1) for x in (query, key, value))
            key_padding_mask = None if key_padding_mask is None else key_padding_mask[None]
        q, k, v = (_split_heads(x, base) for x in _projected(base, query, key, value))
        mask = _additive_mask(attn_mask, key_padding_mask, q)
        k, v, mask = prefixes.extended(k, v, mask)
        dropout, weights = base.dropout if base.training else 0.0, None
        if need_weights:
            scores = q @ k.mT * q.shape[-1] ** -0.5
            weights = F.dropout((scores if mask is None else scores + mask).softmax(-1), dropout)
            out = weights @ v
            weights = weights[..., prefixes.length :]
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            out = F.scaled_dot_product_attention(q, k, v, mask, dropout)
        out = out.transpose(1, 2) if base.batch_first else out.permute(2, 0, 1, 3)
        out = F.linear(out.flatten(2), base.out_proj.weight, base.out_proj.bias)
        if unbatched:
            return out.squeeze(0 if base.batch_first else 1), None if weights is None else weights[0]
        return out, weights


def _projected(base: nn.MultiheadAttention, *inputs: Tensor):
    if base._qkv_same_embed_dim:
        weights = base.in_proj_weight.chunk(3)
    else:
        weights = base.q_proj_weight, base.k_proj_weight, base.v_proj_weight
    biases = (None,) * 3 if base.in_proj_bias is None else base.in_proj_bias.chunk(3)
    return map(F.linear, inputs, weights, biases)


def _split_heads(x: Tensor, base: nn.MultiheadAttention) -> Tensor:
    """[batch, heads, tokens, head_dim]."""
    x = x.unflatten(-1, (base.num_heads, base.head_dim))
    return x.transpose(1, 2) if base.batch_first else x.permute(1, 2, 0, 3)


def _additive_mask(attn_mask: Tensor | None, key_padding_mask: Tensor | None, q: Tensor) -> Tensor | None:
    """Both masks as one to be added to the scores [batch, heads, T, S]; in torch's bool masks, True is unseen."""
    batch, heads = q.shape[:2]
    if attn_mask is not None:
        per_head = attn_mask.ndim == 3
        attn_mask = attn_mask.view(batch, heads, *attn_mask.shape[1:]) if per_head else attn_mask[None, None]
    if key_padding_mask is not None:
        key_padding_mask = key_padding_mask[:, None, None]
    total = None
    for mask in (attn_mask, key_padding_mask):
        if mask is None:
            continue
        if mask.dtype == torch.bool:
            mask = torch.zeros_like(mask, dtype=q.dtype).masked_fill(mask, -torch.inf)
        total = mask.to(q.dtype) if total is None else total + mask.to(q.dtype)
    return total
