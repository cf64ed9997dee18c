"""Rows of attention logits, without the L x L matrix, without a second forward and without eager attention."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vlm_eff.core.errors import CapabilityError, explain
from vlm_eff.kernels.logits import scaled_logits, soft_cap
from vlm_eff.models.token_map import TokenMap


@dataclass(frozen=True)
class Tapped:
    """What a layer attended with; references only, rows are computed when somebody asks.

    query: [B, H, Q, Dh]; key: [B, Hkv, S, Dh]; mask as the layer got it; survivors: map of the call at that layer
    """

    query: Tensor
    key: Tensor
    mask: Any
    scaling: float | None
    softcap: float | None
    window: int | None
    rope: tuple[Tensor, Tensor] | None
    survivors: TokenMap


@dataclass(frozen=True)
class Source:
    """What rows of logits are computed from.

    query:  physical slots [B, R] -> their queries [B, H, R, Dh]
    key:    [B, Hkv, S, Dh] all keys; past: how many of them are older than this call
    causal, window: what a layer without an explicit mask may see
    factor: (logits [B, H, R, S], physical slots [B, R]) -> what a table of modalities makes of them, or None
    queries: [B, H, Q, Dh] all of them, where they lie ready, or None
    """

    query: Callable[[Tensor], Tensor]
    key: Tensor
    past: int
    mask: Any
    scaling: float
    softcap: float | None
    causal: bool
    window: int | None
    factor: Callable[[Tensor, Tensor], Tensor] | None = None
    queries: Tensor | None = None


def tapped_source(seen: Tapped, attention: nn.Module, *, rope: bool) -> Source:
    """Rows of a layer that attended; `rope=False` takes the rotation of this call's tokens out again."""

    def query(slots: Tensor) -> Tensor:
        rows = gather_rows(seen.query, slots)
        return rows if rope else unrotate(attention, rows, *_rows(*_require_rope(seen.rope), slots))

    key = tapped_keys(seen, attention, rope=rope)
    scaling = seen.scaling if seen.scaling is not None else seen.query.shape[-1] ** -0.5
    past = key.shape[2] - seen.query.shape[2]
    causal = bool(getattr(attention, "is_causal", True))
    ready = seen.query if rope else None
    return Source(query, key, past, seen.mask, scaling, seen.softcap, causal, seen.window, queries=ready)


def tapped_keys(seen: Tapped, attention: nn.Module, *, rope: bool) -> Tensor:
    """The keys a layer attended with [B, Hkv, S, Dh]; `rope=False` takes the rotation of this call's keys out again."""
    if rope:
        return seen.key
    new = seen.query.shape[2]
    back = unrotate(attention, seen.key[:, :, -new:], *_require_rope(seen.rope))
    return torch.cat([seen.key[:, :, :-new], back], 2)


def projected_source(
    layer: nn.Module,
    hidden: Tensor,
    rope_tables: tuple[Tensor, Tensor] | None,
    mask: Any,
    past_key: Tensor | None,
    *,
    rope: bool,
) -> Source:
    """The same rows computed from the layer's input, before the layer runs.

    hidden: [B, N, D]; past_key: [B, Hkv, P, Dh] rotated keys already cached, or None; the cache is not touched.
    Costs the layer's input norm and key projection over the N tokens, and one query projection a row.
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
    key = _heads(attention, "k", normed)
    if rope:
        key = rotate(attention, key, *_require_rope(rope_tables))
    past = 0
    if past_key is not None:
        past = past_key.shape[2]
        key = torch.cat([past_key, key], 2)

    def query(slots: Tensor) -> Tensor:
        at = slots[:, :, None].expand(-1, -1, normed.shape[2])
        rows = _heads(attention, "q", normed.gather(1, at))
        return rotate(attention, rows, *_rows(*_require_rope(rope_tables), slots)) if rope else rows

    scaling = getattr(attention, "scaling", attention.head_dim**-0.5)
    softcap = getattr(attention, "attn_logit_softcapping", None)
    causal = bool(getattr(attention, "is_causal", True))
    return Source(query, key, past, mask, scaling, softcap, causal, getattr(attention, "sliding_window", None))


def row_logits(source: Source, slots: Tensor) -> Tensor:
    """Masked float32 logits [B, H, R, S] of the queries at physical slots [B, R] over all keys."""
    factor = None if source.factor is None else partial(_factored, source.factor, slots)
    return _hide(dot(source.query(slots), source.key, source.scaling, source.softcap, factor), source, slots)


def _factored(factor: Callable[[Tensor, Tensor], Tensor], slots: Tensor, logits: Tensor) -> Tensor:
    return factor(logits, slots)


def gather_rows(heads: Tensor, slots: Tensor) -> Tensor:
    """Rows `slots` [B, R] of [B, H, N, Dh], for every head."""
    return heads.gather(2, slots[:, None, :, None].expand(-1, heads.shape[1], -1, heads.shape[3]))


def _heads(attention: nn.Module, which: str, normed: Tensor) -> Tensor:
    """Project and split into heads [B, heads, N, Dh], with the query or key norm of families that have one."""
    made = getattr(attention, f"{which}_proj")(normed)
    made = made.view(*normed.shape[:2], -1, attention.head_dim)
    norm = getattr(attention, f"{which}_norm", None)
    return (made if norm is None else norm(made)).transpose(1, 2)


def dot(
    query: Tensor,
    key: Tensor,
    scaling: float,
    softcap: float | None,
    factor: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Scaled float32 logits [B, H, R, S] of queries [B, H, R, Dh] over grouped keys [B, Hkv, S, Dh].

    factor: what a table of modalities makes of them, before the soft cap
    """
    logits = scaled_logits(query.float(), key.float(), scaling)
    return soft_cap(logits if factor is None else factor(logits), softcap)


def _hide(logits: Tensor, source: Source, slots: Tensor) -> Tensor:
    """Set what the queries may not see to -inf: whatever the layer's mask hides, without one later keys."""
    mask = source.mask
    if isinstance(mask, Tensor) and mask.dim() == 4:
        # the mask alone decides: a bidirectional image block looks ahead
        mask = mask.expand(logits.shape[0], *mask.shape[1:])
        rows = mask.gather(2, slots[:, None, :, None].expand(-1, mask.shape[1], -1, mask.shape[3]))
        hidden = ~rows if rows.dtype == torch.bool else rows <= torch.finfo(rows.dtype).min / 2
        # an added mask may also say how much a key counts, while a threshold is learned
        logits = logits if rows.dtype == torch.bool else logits + rows.masked_fill(hidden, 0.0)
        return logits.masked_fill(hidden, float("-inf"))
    column = torch.arange(logits.shape[-1], device=logits.device)
    distance = (source.past + slots)[:, :, None] - column
    hidden = distance < 0 if source.causal else torch.zeros_like(distance, dtype=torch.bool)
    if source.window is not None:
        hidden = hidden | (distance >= source.window)
    if isinstance(mask, Tensor):
        hidden = hidden | (mask[:, None, : logits.shape[-1]] == 0)
    return logits.masked_fill(hidden[:, None], float("-inf"))


def _rows(cos: Tensor, sin: Tensor, slots: Tensor) -> tuple[Tensor, Tensor]:
    at = slots[:, :, None].expand(-1, -1, cos.shape[-1])
    return cos.expand(slots.shape[0], -1, -1).gather(1, at), sin.expand(slots.shape[0], -1, -1).gather(1, at)


def rotate(attention: nn.Module, heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
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


def unrotate(attention: nn.Module, heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Undo `rotate`: rotate back, and divide by the scale that long-context rotary tables carry."""
    back = rotate(attention, heads, cos, -sin)
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
