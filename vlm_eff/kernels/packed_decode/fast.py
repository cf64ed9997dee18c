"""Decoding over packed entries in PyTorch: one softmax over the logits of all segments, nothing is read back.

Sums are float32 whatever the type of the query, for in half precision those of lowest values are off by a fifth.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from vlm_eff.kernels.packed_decode.pairs import PackedPair, Pair
from vlm_eff.kernels.packed_decode.products import across, along, in_pieces
from vlm_eff.kernels.quantise import Quantised

# bytes of codes, or numbers as they are, that are read at once: 2 MiB in float32
PIECE = 1 << 19
# numbers of 1 or 2 bits, four or eight planes, below which reading them back takes fewer steps
FEW = 1 << 16


def packed_decode(
    query: Tensor, segments: Sequence[Pair], *, scaling: float, softcap: float | None = None, return_lse: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """See `op.py`."""
    output, total = _decode(query, segments, scaling, softcap, PIECE)
    return (output, total) if return_lse else output


def compiled(
    query: Tensor, segments: Sequence[Pair], *, scaling: float, softcap: float | None = None, return_lse: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """The same through `torch.compile`, which unpacks inside the products.

    The first call of a form compiles it: over a minute on two shared cores.
    """
    output, total = _compiled()(query, segments, scaling, softcap, None)
    return (output, total) if return_lse else output


@lru_cache
def _compiled() -> Callable[..., Any]:
    return torch.compile(_decode, dynamic=True)


def _decode(
    query: Tensor, segments: Sequence[Pair], scaling: float, softcap: float | None, piece: int | None
) -> tuple[Tensor, Tensor]:
    """Output [B, H, Q, Dh] and log-sum-exp [B, H, Q]; piece: as in `products.py`."""
    kind = torch.promote_types(query.dtype, torch.float32)
    batch, heads, rows, width = query.shape
    segments = [pair for pair in segments if pair.count]
    if not segments:
        return torch.zeros_like(query), query.new_full(query.shape[:3], -torch.inf, dtype=kind)
    shared = _heads(segments[0])
    asked = query.to(kind).reshape(batch * shared, heads // shared * rows, width)
    parts = []
    for pair in segments:
        logits = _scores(asked, pair, piece) * scaling
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        if pair.bias is not None:
            logits = _biased(logits, pair.bias.to(kind), (batch, shared, heads // shared, rows))
        parts.append(logits)
    everything = torch.cat(parts, -1) if len(parts) > 1 else parts[0]
    total = everything.logsumexp(-1, keepdim=True)
    weights = (everything - total.masked_fill(total == -torch.inf, 0.0)).exp()
    output = None
    for pair, share in zip(segments, weights.split([pair.count for pair in segments], -1), strict=True):
        added = _values(share, pair, piece)
        output = added if output is None else output + added
    assert output is not None
    return output.to(query.dtype).view(*query.shape[:3], -1), total.view(query.shape[:3])


def _heads(pair: Pair) -> int:
    return (pair.key.codes if isinstance(pair, PackedPair) else pair.key).shape[1]


def _biased(logits: Tensor, bias: Tensor, shape: tuple[int, int, int, int]) -> Tensor:
    """Logits [B Hkv, n Q, P] and a bias [B, 1 | Hkv | H, 1 | Q, P]."""
    batch, shared, n, rows = shape
    by_head = bias.unflatten(1, (shared, n)) if bias.shape[1] == shared * n else bias[:, :, None]
    return (logits.view(batch, shared, n, rows, -1) + by_head).view_as(logits)


def _scores(query: Tensor, pair: Pair, piece: int | None) -> Tensor:
    """Products [N, R, P] of queries [N, R, Dh] with keys; N is B Hkv."""
    stored = _plain(pair.key, query.dtype, piece)
    if isinstance(stored, Tensor):
        key = stored.flatten(0, 1)
        return in_pieces(lambda at: query[at] @ key[at].to(query.dtype).transpose(1, 2), key, piece)
    if stored.channel is not None:
        query = query * stored.channel.flatten(0, 1).to(query.dtype)
    if stored.format.axis == "token":
        return along(query, stored, piece)
    made = across(query, stored, piece)
    if (order := stored.order()) is None:
        return made
    return made.gather(-1, order.argsort(-1).flatten(0, 1)[:, None].expand_as(made))


def _values(weights: Tensor, pair: Pair, piece: int | None) -> Tensor:
    """Values weighted by [N, R, P] and summed -> [N, R, Dh]; N is B Hkv."""
    stored = _plain(pair.value, weights.dtype, piece)
    if isinstance(stored, Tensor):
        value = stored.flatten(0, 1)
        return in_pieces(lambda at: weights[at] @ value[at].to(weights.dtype), value, piece)
    if stored.format.axis == "token":
        made = across(weights, stored, piece)
    else:
        if (order := stored.order()) is not None:
            weights = weights.gather(-1, order.flatten(0, 1)[:, None].expand_as(weights))
        made = along(weights, stored, piece)
    return made if stored.channel is None else made * stored.channel.flatten(0, 1).to(made.dtype)


def extra_flops(pair: PackedPair, rows: int) -> int:
    """FLOPs of this form beyond two products of `rows` queries a key head with every entry; none where a kernel runs.

    Lowest values are multiplied by themselves, and bytes that are not full are multiplied whole.
    """
    made = 0
    for stored in (pair.key, pair.value):
        left = _plain(stored, torch.float32, PIECE)
        if isinstance(left, Tensor) or stored.codes.is_cuda:
            continue
        numbers = stored.codes.shape[0] * stored.codes.shape[1] * stored.count * stored.width
        filled = stored.codes.numel() * (8 // stored.format.bits)
        made += 2 * rows * (stored.lowest.numel() + filled - numbers)
    return made


def _plain(stored: Quantised | Tensor, kind: torch.dtype, piece: int | None) -> Quantised | Tensor:
    """Entries with outliers, which stand among the codes, are read back; so are a few in many planes."""
    if not isinstance(stored, Quantised):
        return stored
    numbers = stored.codes.shape[0] * stored.codes.shape[1] * stored.count * stored.width
    few = piece is not None and stored.format.bits <= 2 and numbers < FEW
    return stored.read(kind) if few or stored.place is not None else stored
