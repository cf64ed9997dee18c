"""One row of attention logits, without the L x L matrix, without a second forward and without eager attention."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vlm_eff.core.errors import CapabilityError, explain
from vlm_eff.models.token_map import TokenMap


@dataclass(frozen=True)
class Tapped:
    """What a layer attended with; references only, the row is computed when somebody asks.

    query: [B, H, Q, Dh]; key: [B, Hkv, S, Dh]; mask as the layer got it; survivors: map of the call at that layer
    """

    query: Tensor
    key: Tensor
    mask: Any
    scaling: float | None
    softcap: float | None
    rope: tuple[Tensor, Tensor] | None
    survivors: TokenMap


def tapped_logits(seen: Tapped, attention: nn.Module, query_slot: Tensor, *, rope: bool) -> Tensor:
    """Masked float32 logits of one query over all keys [B, H, S].

    query_slot: [B] physical slot of the query. `rope=False` takes the rotation of this call's tokens out again.
    """
    query, key = seen.query, tapped_keys(seen, attention, rope=rope)
    new = query.shape[2]
    row = query.gather(2, query_slot[:, None, None, None].expand(-1, query.shape[1], 1, query.shape[3]))
    if not rope:
        row = _unrotate(attention, row, *_rows(*_require_rope(seen.rope), query_slot))
    scaling = seen.scaling if seen.scaling is not None else query.shape[-1] ** -0.5
    logits = _dot(row, key, scaling, seen.softcap)
    return _hide(logits, seen.mask, query_slot, key.shape[2] - new)


def tapped_keys(seen: Tapped, attention: nn.Module, *, rope: bool) -> Tensor:
    """The keys a layer attended with [B, Hkv, S, Dh]; `rope=False` takes the rotation of this call's keys out again."""
    if rope:
        return seen.key
    new = seen.query.shape[2]
    back = _unrotate(attention, seen.key[:, :, -new:], *_require_rope(seen.rope))
    return torch.cat([seen.key[:, :, :-new], back], 2)


def projected_logits(
    layer: nn.Module,
    hidden: Tensor,
    rope_tables: tuple[Tensor, Tensor] | None,
    mask: Any,
    past_key: Tensor | None,
    query_slot: Tensor,
    *,
    rope: bool,
) -> Tensor:
    """The same row computed from the layer's input, before the layer runs [B, H, S].

    hidden: [B, N, D]; past_key: [B, Hkv, P, Dh] rotated keys already cached, or None; the cache is not touched.
    Costs the layer's input norm and key projection over the N tokens, and one query projection.
    """
    attention = layer.self_attn
    for name in ("q_proj", "k_proj", "head_dim"):
        if not hasattr(attention, name):
            raise CapabilityError(
                explain(
                    f"{type(attention).__name__} has no {name}",
                    "attention with q_proj, k_proj and head_dim",
                    'Use a method that observes "inside" a layer, such as fastv',
                )
            )
    normed = layer.input_layernorm(hidden)
    at = query_slot[:, None, None].expand(-1, 1, normed.shape[2])
    query = _heads(attention, "q", normed.gather(1, at))
    key = _heads(attention, "k", normed)
    if rope:
        cos, sin = _require_rope(rope_tables)
        query = _rotate(attention, query, *_rows(cos, sin, query_slot))
        key = _rotate(attention, key, cos, sin)
    if past_key is not None:
        key = torch.cat([past_key, key], 2)
    scaling = getattr(attention, "scaling", attention.head_dim**-0.5)
    logits = _dot(query, key, scaling, getattr(attention, "attn_logit_softcapping", None))
    return _hide(logits, mask, query_slot, 0 if past_key is None else past_key.shape[2])


def _heads(attention: nn.Module, which: str, normed: Tensor) -> Tensor:
    """Project and split into heads [B, heads, N, Dh], with the query or key norm of families that have one."""
    made = getattr(attention, f"{which}_proj")(normed)
    made = made.view(*normed.shape[:2], -1, attention.head_dim)
    norm = getattr(attention, f"{which}_norm", None)
    return (made if norm is None else norm(made)).transpose(1, 2)


def _dot(query: Tensor, key: Tensor, scaling: float, softcap: float | None) -> Tensor:
    """Scaled float32 logits [B, H, S] of one query [B, H, 1, Dh] over grouped keys [B, Hkv, S, Dh]."""
    batch, heads, _, width = query.shape
    grouped = query.float().reshape(batch, key.shape[1], heads // key.shape[1], width)
    logits = (grouped @ key.float().transpose(2, 3)).reshape(batch, heads, -1) * scaling
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def _hide(logits: Tensor, mask: Any, query_slot: Tensor, past: int) -> Tensor:
    """Set what the query may not see to -inf: later keys, and whatever the layer's mask hides."""
    column = torch.arange(logits.shape[-1], device=logits.device)
    hidden = (column[None, :] > (past + query_slot)[:, None])[:, None]
    if isinstance(mask, Tensor) and mask.dim() == 2:
        hidden = hidden | (mask[:, None, : logits.shape[-1]] == 0)
    elif isinstance(mask, Tensor):
        mask = mask.expand(logits.shape[0], *mask.shape[1:])
        row = mask.gather(2, query_slot[:, None, None, None].expand(-1, mask.shape[1], 1, mask.shape[3]))[:, :, 0]
        # a bidirectional image block never reaches the last prompt token's row, so the mask alone decides here
        hidden = ~row if row.dtype == torch.bool else row <= torch.finfo(row.dtype).min / 2
    return logits.masked_fill(hidden, float("-inf"))


def _rows(cos: Tensor, sin: Tensor, slot: Tensor) -> tuple[Tensor, Tensor]:
    at = slot[:, None, None].expand(-1, 1, cos.shape[-1])
    return cos.expand(slot.shape[0], -1, -1).gather(1, at), sin.expand(slot.shape[0], -1, -1).gather(1, at)


def _rotate(attention: nn.Module, heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate [B, heads, N, Dh] with the family's own function."""
    apply = getattr(sys.modules[type(attention).__module__], "apply_rotary_pos_emb", None)
    if apply is None:
        raise CapabilityError(
            explain(
                f"{type(attention).__module__} has no apply_rotary_pos_emb",
                "families with the common rotary embedding",
                "Use a method that observes inside a layer with rotation, such as fastv",
            )
        )
    made: Tensor = apply(heads, heads, cos, sin)[0]
    return made


def _unrotate(attention: nn.Module, heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Undo `_rotate`: rotate back, and divide by the scale that long-context rotary tables carry."""
    back = _rotate(attention, heads, cos, -sin)
    scale = (cos * cos + sin * sin).unsqueeze(1)
    if scale.shape[-1] == back.shape[-1]:
        return back / scale
    return torch.cat([back[..., : scale.shape[-1]] / scale, back[..., scale.shape[-1] :]], -1)


def _require_rope(tables: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
    if tables is None:
        raise CapabilityError(
            explain("a layer without rotary tables", "layers that receive position_embeddings", "Choose another layer")
        )
    return tables
