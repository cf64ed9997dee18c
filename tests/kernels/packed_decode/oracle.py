"""Decoding over packed entries in float64, written without the operation: codes one by one, one softmax over all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tests.kernels.kit import normal
from vlm_eff.kernels.format import Format
from vlm_eff.kernels.packed_decode import ExactPair, PackedPair
from vlm_eff.kernels.packed_decode.pairs import Pair
from vlm_eff.kernels.quantise import Quantised, quantise


def exactly(stored: Quantised | Tensor, size: bool = False) -> Tensor:
    """The entries [B, Hkv, P, Dh] in float64; with `size` how far the codes of their groups reach from the middle."""
    if isinstance(stored, Tensor):
        return stored.double().abs() if size else stored.double()
    bits, token = stored.format.bits, stored.format.axis == "token"
    length = stored.width if token else stored.count
    place = torch.arange(length)
    codes = stored.codes.long()[..., place * bits // 8] >> (place * bits % 8) & (2**bits - 1)
    group = place // stored.format.size(length)
    lowest = stored.lowest.double()[..., group]
    if size:
        codes, lowest = torch.full_like(codes, 2 ** (bits - 1)), torch.zeros_like(lowest)
    lines = codes * stored.scale.double()[..., group] + lowest
    if token:
        return lines if stored.channel is None else lines * stored.channel.double()
    lines = lines.transpose(2, 3)
    if stored.present is None:
        return lines
    entries = torch.zeros_like(lines)
    bit = torch.arange(stored.count)
    valid = stored.present.long()[..., bit // 8] >> (bit % 8) & 1
    for row in range(lines.shape[0]):
        for head in range(lines.shape[1]):
            order = [*valid[row, head].nonzero()[:, 0].tolist(), *(1 - valid[row, head]).nonzero()[:, 0].tolist()]
            entries[row, head, order] = lines[row, head]
    return entries


def wanted(
    query: Tensor, segments: Sequence[Pair], scaling: float, softcap: float | None = None
) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp of one softmax over everything, heads repeated."""
    logits, values = _attended(query, segments, scaling, softcap)
    return logits.softmax(-1).nan_to_num(0.0) @ values, logits.logsumexp(-1)


def rounded(
    query: Tensor, segments: Sequence[Pair], scaling: float, softcap: float | None = None, at_once: bool = True
) -> tuple[Tensor, Tensor]:
    """By how many roundings the output [B, H, Q, Dh] and the log-sum-exp [B, H, Q] may be off.

    Each factor of a product is rounded by itself, so a logit moves by the length of the vector of its products; and
    the output by that of the weighted values, and of their distances to it times what their logits moved. Where sums
    are not made `at_once`, each entry is added to a sum as large as all of them.
    """
    logits, values = _attended(query, segments, scaling, softcap)
    weights = logits.softmax(-1).nan_to_num(0.0)
    n = query.shape[1] // exactly(segments[0].key).shape[1]
    keys, sizes = (
        torch.cat([exactly(side, size=True) for side in sides], 2).repeat_interleave(n, 1)
        for sides in zip(*((pair.key, pair.value) for pair in segments), strict=True)
    )
    far = (query.double().square() @ keys.square().transpose(2, 3)).sqrt() * scaling
    apart = values[:, :, None] - (weights @ values)[:, :, :, None]
    shifted = ((weights * far)[..., None] * apart).square().sum(-2)
    added = weights.square() @ sizes.square() if at_once else (weights @ sizes).square()
    return (shifted + added).sqrt(), far.amax(-1)


def _attended(query: Tensor, segments: Sequence[Pair], scaling: float, softcap: float | None) -> tuple[Tensor, Tensor]:
    """Logits [B, H, Q, P] and values [B, H, P, Dh] of all segments."""
    keys, values, biases = [], [], []
    for pair in segments:
        n = query.shape[1] // exactly(pair.key).shape[1]
        keys.append(exactly(pair.key).repeat_interleave(n, 1))
        values.append(exactly(pair.value).repeat_interleave(n, 1))
        bias = torch.zeros(1, 1, 1, pair.count) if pair.bias is None else pair.bias
        if bias.shape[1] not in (1, query.shape[1]):
            bias = bias.repeat_interleave(n, 1)
        biases.append(bias.double().expand(*query.shape[:3], pair.count))
    logits = query.double() @ torch.cat(keys, 2).transpose(2, 3) * scaling
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return logits + torch.cat(biases, -1), torch.cat(values, 2)


@dataclass(frozen=True)
class Case:
    """A cache of two segments: `count` packed entries, and `tail` of them as they are behind."""

    bits: int = 4
    key: str = "channel"
    value: str = "token"
    group: int | None = None
    count: int = 300
    tail: int = 0
    batch: int = 1
    heads: int = 2
    shared: int = 2
    rows: int = 1
    width: int = 128
    bias: str = ""
    fillers: bool = False
    softcap: float | None = None


def arguments(case: Case, dtype: torch.dtype, generator: torch.Generator) -> dict[str, Any]:
    """A call. Scales are float32 for every type, since the interpreter must not meet bfloat16."""
    shape = (case.batch, case.shared)
    query = normal(generator, case.batch, case.heads, case.rows, case.width, dtype=dtype)
    there = None
    if case.fillers:
        there = torch.rand(*shape, case.count, generator=generator) > 0.2
    made = []
    for at, axis in enumerate((case.key, case.value)):
        form = Format(case.bits, axis, case.group, separable=axis == "token" and at == 1)  # type: ignore[arg-type]
        # some channels are far larger than others, and far from 0
        entries = normal(generator, *shape, case.count, case.width)
        entries = entries * (1 + 3 * torch.rand(case.width, generator=generator))
        made.append(quantise(entries + normal(generator, case.width), form, there))
    bias = None
    if case.bias or case.fillers:
        heads = {"": 1, "shared": 1, "key heads": case.shared, "query heads": case.heads}[case.bias]
        bias = normal(generator, case.batch, heads, case.rows if case.bias else 1, case.count)
        if there is not None:
            bias = torch.zeros(*shape, 1, case.count).masked_fill(~there[:, :, None], -torch.inf)
    segments: list[Pair] = [PackedPair(*made, bias)]
    if case.tail:
        segments.append(ExactPair(*(normal(generator, *shape, case.tail, case.width, dtype=dtype) for _ in range(2))))
    # logits of about 1: an absolute error of their sum is meant for such
    return {"query": query, "segments": segments, "scaling": 0.4 * case.width**-0.5, "softcap": case.softcap}
