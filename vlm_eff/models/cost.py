"""Analytic FLOPs and bytes of a decoder, from the shapes of its modules."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from vlm_eff.models.adapter import Adapter


def layer_flops(layer: nn.Module, tokens: float, keys: float, queries: float | None = None) -> float:
    """FLOPs of one decoder layer for `tokens` tokens over `keys` keys: 2 a multiply-add, causal attention not halved.

    queries: tokens that attend, when some of them bypass the attention; default all.
    Counts linear maps and attention products, as `torch.utils.flop_counter` does; norms and activations are left out.
    """
    linear = sum(
        module.in_features * module.out_features for module in layer.modules() if isinstance(module, nn.Linear)
    )
    attention = layer.self_attn
    heads_width = attention.config.num_attention_heads * attention.head_dim
    return 2.0 * linear * tokens + 4.0 * heads_width * (tokens if queries is None else queries) * keys


def decoder_flops(
    adapter: Adapter, tokens: Sequence[float], keys: Sequence[float], rows: int, queries: Sequence[float] | None = None
) -> float:
    """FLOPs of all decoder layers for `rows` rows; `tokens`, `keys` and `queries` (default the tokens) per layer.

    Embedding and head are left out.
    """
    per_layer = zip(adapter.layers, tokens, keys, tokens if queries is None else queries, strict=True)
    return rows * sum(layer_flops(layer, count, seen, asking) for layer, count, seen, asking in per_layer)
