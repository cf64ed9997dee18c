"""Keys and values of one set of cache entries: both quantised, or both as they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vlm_eff.core.errors import InputError, explain
from vlm_eff.kernels.quantise import Quantised


@dataclass(frozen=True)
class PackedPair:
    """Quantised entries [B, Hkv, P, Dh]; bias: [B, 1 | Hkv | H, 1 | Q, P] as in `packed_decode`, or None."""

    key: Quantised
    value: Quantised
    bias: Tensor | None = None

    @property
    def count(self) -> int:
        """P: entries of a row and head, fillers included."""
        return self.key.count

    def read(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Keys and values [B, Hkv, P, Dh] in `dtype`."""
        return self.key.read(dtype), self.value.read(dtype)


@dataclass(frozen=True)
class ExactPair:
    """Entries as they are: key, value [B, Hkv, P, Dh]; bias: as in `PackedPair`."""

    key: Tensor
    value: Tensor
    bias: Tensor | None = None

    @property
    def count(self) -> int:
        """P: entries of a row and head, fillers included."""
        return self.key.shape[2]

    def read(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Keys and values [B, Hkv, P, Dh] in `dtype`."""
        return self.key.to(dtype), self.value.to(dtype)


Pair = PackedPair | ExactPair


def check(query: Tensor, segments: Sequence[Pair]) -> None:
    """Raise `InputError` unless queries and segments fit together."""
    if query.dim() != 4 or not query.is_floating_point():
        got = f"a query of shape {list(query.shape)} and type {query.dtype}"
        raise InputError(explain(got, "floating numbers [B, H, Q, Dh]", "Give the query rows of one layer"))
    batch, heads, rows, width = query.shape
    for at, pair in enumerate(segments):
        if not isinstance(pair, PackedPair | ExactPair):
            accepted = "PackedPair of quantised entries, ExactPair of tensors"
            raise InputError(explain(f"segment {at} of type {type(pair).__name__}", accepted, "Wrap keys and values"))
        key, value = (_shape(one) for one in (pair.key, pair.value))
        shared = key[1]
        if key[0] != batch or not shared or heads % shared or key[3] != width or value[:3] != key[:3]:
            got = f"segment {at} with keys {key} and values {value} for a query {list(query.shape)}"
            accepted = "[B, Hkv, P, Dh] each, Hkv a divisor of H"
            raise InputError(explain(got, accepted, "Give keys and values of the same entries"))
        if value[3] != _shape(segments[0].value)[3]:
            got = f"values of width {value[3]} in segment {at}, {_shape(segments[0].value)[3]} before"
            raise InputError(explain(got, "one width", "Give segments of one layer"))
        allowed = ((batch,), (1, shared, heads), (1, rows), (pair.count,))
        if pair.bias is not None and (
            pair.bias.dim() != 4
            or any(size not in fine for size, fine in zip(pair.bias.shape, allowed, strict=True))
            or not pair.bias.is_floating_point()
        ):
            got = f"bias of shape {list(pair.bias.shape)} and type {pair.bias.dtype} for {pair.count} entries"
            raise InputError(explain(got, "floating numbers [B, 1 | Hkv | H, 1 | Q, P]", "Give one number an entry"))


def _shape(side: Quantised | Tensor) -> list[int]:
    if isinstance(side, Tensor):
        return list(side.shape)
    return [*side.codes.shape[:2], side.count, side.width]
