"""Sums over all queries of a prompt, taken chunk by chunk as the rows of attention come."""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from torch.nn.functional import pad

from vlm_eff.core.errors import StateError, explain
from vlm_eff.importance.entry_scores import by_group, seen

Normalise = Literal["none", "visible", "length"]


class ColumnSums:
    """What each entry got from all rows so far (H2O, ZipCache); the order and size of the chunks do not matter.

    Sums are float64, so that chunks of one row and one chunk of all rows agree in float32. Memory: 2 * Hkv + 1 numbers
    an entry. Entries that came later appear on the right.
    """

    def __init__(self, groups: int) -> None:
        self.groups = groups
        self._raw: Tensor | None = None
        self._long: Tensor | None = None
        self._count: Tensor | None = None

    def add(self, attention: Tensor, row_valid: Tensor, looks: Tensor) -> None:
        """Count rows in: attention [B, H, R, S], row_valid [B, R], looks [B, R, S]; S may have grown since the last."""
        weights = seen(attention, row_valid, looks).double()
        there = looks & row_valid[:, :, None]
        length = there.sum(2).double()
        raw = by_group(weights.sum(2), self.groups)
        long = by_group((weights * length[:, None, :, None]).sum(2), self.groups)
        count = there.sum(1)[:, None].expand(raw.shape)
        if self._raw is not None and self._long is not None and self._count is not None:
            more = raw.shape[2] - self._raw.shape[2]
            raw, long, count = (
                raw + pad(self._raw, (0, more)),
                long + pad(self._long, (0, more)),
                count + pad(self._count, (0, more)),
            )
        self._raw, self._long, self._count = raw, long, count

    def take(self, index: Tensor) -> None:
        """Follow an eviction: keep the sums of the entries `index` [B, Hkv, K] of each key head."""
        raw, long, count = self._state()
        self._raw, self._long, self._count = (each.gather(2, index) for each in (raw, long, count))

    def scores(self, normalise: Normalise = "none") -> Tensor:
        """Scores [B, Hkv, S] float32, higher = keep; 0 for an entry that no row may look at.

        normalise: early entries are looked at by more rows. "none" is H2O as published (arXiv:2306.14048): under even
            attention over T entries the first gets T * H_T times what the last gets (H_T the harmonic number).
            "visible" divides by the rows that may look (ZipCache, arXiv:2405.14256): H_T is left. "length" also weighs
            each row by the number of entries that it shares itself out over: no bias is left.
        """
        raw, long, count = self._state()
        made = {"none": raw, "visible": raw / count.clamp(min=1), "length": long / count.clamp(min=1)}[normalise]
        return made.float()

    def _state(self) -> tuple[Tensor, Tensor, Tensor]:
        if self._raw is None or self._long is None or self._count is None:
            raise StateError(explain("scores of no rows", "at least one chunk of attention", "Call add first"))
        return self._raw, self._long, self._count
