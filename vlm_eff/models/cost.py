"""Analytic FLOPs and bytes of a decoder, from the shapes of its modules."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from vlm_eff.models.adapter import Adapter


def layer_flops(layer: nn.Module, tokens: float, keys: float) -> float:
    """FLOPs of one decoder layer for `tokens` queries over `keys` keys: 2 a multiply-add, causal attention not halved.

    Counts linear maps and attention products, as `torch.utils.flop_counter` does; norms and activations are left out.
    """
    linear = sum(
        module.in_features * module.out_features for module in layer.modules() if isinstance(module, nn.Linear)
    )
    attention = layer.self_attn
    heads_width = attention.config.num_attention_heads * attention.head_dim
    return 2.0 * linear * tokens + 4.0 * heads_width * tokens * keys


def decoder_flops(adapter: Adapter, tokens: Sequence[float], keys: Sequence[float], rows: int) -> float:
    """FLOPs of all decoder layers for `rows` rows; `tokens` and `keys` per layer. Embedding and head are left out."""
    per_layer = zip(adapter.layers, tokens, keys, strict=True)
    return rows * sum(layer_flops(layer, count, seen) for layer, count, seen in per_layer)
