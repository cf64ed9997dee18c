"""Merging inside the vision tower: the schedule of pairs a block, and the plugin that asks bipartite matching."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from vlm_eff.core.config import part
from vlm_eff.core.errors import ConfigError, explain
from vlm_eff.core.plugin import BindContext, Plugin
from vlm_eff.core.resources import Resource
from vlm_eff.core.tower import TowerMerge, TowerSite
from vlm_eff.importance.bipartite import bipartite_match
from vlm_eff.importance.keep import is_number
from vlm_eff.models.vit.view import TowerView


@part
@dataclass(frozen=True)
class MergeSchedule:
    """Pairs to merge in each block: a count (`pairs`), or a fraction of an image's own patches (`ratio`).

    inflect: -1 merges twice as much in the first block and nothing in the last, 1 the reverse, 0 the same in all
    listed:  pairs of each block, instead of `pairs`; blocks behind its end merge nothing
    """

    pairs: int | None = None
    ratio: float | None = None
    inflect: float = 0.0
    listed: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if sum(value is not None for value in (self.pairs, self.ratio, self.listed)) != 1:
            raise ConfigError(
                explain(
                    f"r={self.pairs if self.listed is None else self.listed}, r_ratio={self.ratio}",
                    "exactly one of the two",
                    "Give pairs a block (r) or a fraction of the patches a block (r_ratio)",
                )
            )
        counts = self.listed if self.listed is not None else (self.pairs or 0,)
        whole = all(isinstance(count, int) and not isinstance(count, bool) and count >= 0 for count in counts)
        ratio = 0.0 if self.ratio is None else self.ratio
        numbers = is_number(self.inflect) and is_number(ratio)
        if not whole or not numbers or not -1 <= self.inflect <= 1 or not 0 <= ratio < 0.5:
            raise ConfigError(
                explain(
                    f"r={counts}, inflect={self.inflect!r}, r_ratio={self.ratio!r}",
                    "whole numbers of at least 0, an inflection from -1 to 1, a ratio from 0 to below 0.5",
                    "Correct the schedule",
                )
            )

    @property
    def nothing(self) -> bool:
        """Merges nothing at all."""
        return not self.pairs and not self.ratio and not any(self.listed or ())

    def at(self, block: int, blocks: int, patches: int) -> int:
        """Pairs for `block` of `blocks` in an image of `patches` patches."""
        if self.listed is not None:
            return self.listed[block] if block < len(self.listed) else 0
        if self.pairs is not None and not self.inflect:
            return self.pairs
        share = self.pairs if self.pairs is not None else (self.ratio or 0.0) * patches
        first = int(share * (1 - self.inflect) + 1e-9)
        step = (2 * share - 2 * first) / (blocks - 1) if blocks > 1 and self.inflect else 0.0
        return int(first + step * block + 1e-9)


@part
@dataclass(frozen=True)
class TowerMerger(Plugin):
    """Merges the most similar tokens in every block of the vision tower, between attention and MLP."""

    method: str
    schedule: MergeSchedule
    proportional: bool = True
    blocks: int = 0

    @property
    def name(self) -> str:
        return self.method

    @property
    def sites(self) -> tuple[TowerSite, ...]:
        if self.schedule.nothing:
            return ()
        return tuple(TowerSite(block) for block in range(self.blocks) if self._may(block))

    def _may(self, block: int) -> bool:
        return self.schedule.ratio is not None or self.schedule.at(block, self.blocks, 0) > 0

    @property
    def writes(self) -> frozenset[Resource]:
        return frozenset({Resource.TOWER_TOKENS})

    def bind(self, context: BindContext) -> TowerMerger:
        if self.schedule.listed:
            context.check_block(self.name, len(self.schedule.listed) - 1)
        return replace(self, blocks=context.num_blocks or 0)

    def at(self, site: TowerSite, view: TowerView) -> TowerMerge | None:
        counts = [
            max(min(self.schedule.at(site.block, self.blocks, patches), (left - view.prefix) // 2), 0)
            for left, patches in zip(view.counts, view.original, strict=True)
        ]
        if not any(counts):
            return None
        _, key = view.query_key()
        even = view.valid is None and view.group is None and len(set(counts)) == 1
        pairs = counts[0] if even else torch.tensor(counts, device=key.device)
        index, valid, into = bipartite_match(
            key.mean(1), pairs, protected=view.prefix, valid=view.valid, segment=view.group
        )
        return TowerMerge(index, valid, into, self.proportional)


def merge_schedule(r: int | Sequence[float] | None, r_ratio: float | None, inflect: float = 0.0) -> MergeSchedule:
    """The schedule of `r` as users write it: a number, a pair (r, inflect), or a list with one number a block."""
    if r is None or isinstance(r, int):
        return MergeSchedule(pairs=r, ratio=r_ratio, inflect=inflect)
    if isinstance(r, tuple) and len(r) == 2 and isinstance(r[1], float):
        return MergeSchedule(pairs=int(r[0]), ratio=r_ratio, inflect=r[1])
    if not isinstance(r, Sequence) or isinstance(r, str):
        accepted = "a whole number, a pair (r, inflect), or a list with one number a block"
        raise ConfigError(explain(f"r={r!r}", accepted, "Give the pairs to merge"))
    return MergeSchedule(listed=tuple(r), ratio=r_ratio)  # type: ignore[arg-type]
