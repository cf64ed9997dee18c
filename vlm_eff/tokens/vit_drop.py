"""Dropping inside the vision tower: at some blocks, the least important patches of each image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from vlm_eff.core.config import part
from vlm_eff.core.errors import CapabilityError, ConfigError, explain
from vlm_eff.core.plugin import BindContext, Plugin
from vlm_eff.core.resources import Resource
from vlm_eff.core.tower import TowerKeep, TowerSite
from vlm_eff.importance.keep import is_number
from vlm_eff.importance.select import from_mask, top_k
from vlm_eff.importance.similarity import normalised
from vlm_eff.models.vit.view import TowerView
from vlm_eff.tokens.vit_scores import TowerScore

_SLACK = 1e-9


@part
@dataclass(frozen=True)
class TowerDropper(Plugin):
    """Drops the patches of lowest score at some blocks of the vision tower.

    blocks:     0-based, ascending; None: at a quarter, a half and three quarters of the tower
    keep_ratio: of the patches that are left at a block, rounded up
    similar:    fraction of them that is dropped besides, because another one of higher score has the same key
    fuse:       "none"; "mean": the dropped ones go on as one token, their mean weighted by score; "sum": the same
                without dividing by the sum of weights
    """

    method: str
    score: TowerScore
    keep_ratio: float
    blocks: tuple[int, ...] | None = None
    similar: float = 0.0
    fuse: Literal["none", "mean", "sum"] = "none"
    when: Literal["before", "inside"] = "inside"
    depth: int = 0

    def __post_init__(self) -> None:
        numbers = is_number(self.keep_ratio) and is_number(self.similar)
        if not numbers or not 0 < self.keep_ratio <= 1 or not 0 <= self.similar < self.keep_ratio:
            raise ConfigError(
                explain(
                    f"keep_ratio={self.keep_ratio!r}, similar={self.similar!r}",
                    "keep_ratio in (0, 1], similar from 0 to below keep_ratio",
                    "Give fractions of the patches that are left at a block",
                )
            )
        blocks = self.blocks
        if blocks is not None and (not blocks or list(blocks) != sorted(set(blocks))):
            raise ConfigError(explain(f"blocks={blocks}", "ascending blocks, such as (3, 6, 9)", "Correct the blocks"))

    @property
    def name(self) -> str:
        return self.method

    @property
    def nothing(self) -> bool:
        """Drops nothing at all."""
        return self.keep_ratio == 1 and not self.similar

    @property
    def sites(self) -> tuple[TowerSite, ...]:
        return () if self.nothing else tuple(TowerSite(block, self.when) for block in self.blocks or ())

    @property
    def writes(self) -> frozenset[Resource]:
        return frozenset({Resource.TOWER_TOKENS})

    def bind(self, context: BindContext) -> TowerDropper:
        depth, first = context.num_blocks or 0, int(self.when == "before")
        blocks = self.blocks
        if blocks is None:
            blocks = tuple(sorted({max(depth * quarter // 4, first) for quarter in (1, 2, 3)}))
        for block in blocks:
            context.check_block(self.name, block)
        if blocks[0] < first:
            raise CapabilityError(
                explain(
                    f"{self.name} before block {blocks[0]}",
                    f"blocks from {first} on: it looks at the attention of the block before",
                    "Choose a later block",
                )
            )
        if getattr(self.score, "row", "") == "cls" and not context.class_token:
            raise CapabilityError(
                explain(
                    f"{self.name} wants the class token of a {context.family} tower, which has none",
                    'row="received" or row="auto"',
                    'Use row="auto"',
                )
            )
        return replace(self, blocks=blocks, depth=depth)

    def at(self, site: TowerSite, view: TowerView) -> TowerKeep | None:
        scores = self.score(view, site.block / max(self.depth, 1))
        if view.padding is not None:
            scores = scores.masked_fill(view.padding, -1.0)
        columns = torch.arange(scores.shape[1], device=scores.device)
        real = torch.ones_like(scores, dtype=torch.bool) if view.valid is None else view.valid
        patches = real & (columns >= view.prefix)
        kept = top_k(scores, _up(self.keep_ratio, patches), patches)
        if self.similar:
            kept = kept & ~self._doubles(view, scores, kept, patches)
        if bool((kept | ~patches).all()):
            return None
        return self._action(view, scores, kept | (real & ~patches), patches & ~kept)

    def _doubles(self, view: TowerView, scores: Tensor, kept: Tensor, patches: Tensor) -> Tensor:
        """Of the kept patches those of the less important half that are most like one of the other half [I, T]."""
        upper = top_k(scores, (kept.sum(1) + 1) // 2, kept)
        lower = kept & ~upper
        unit = normalised(view.query_key()[1].float().mean(1))
        alike = (unit @ unit.transpose(1, 2)).masked_fill(~upper[:, None], -torch.inf).amax(2)
        count = (patches.sum(1) * self.similar + _SLACK).long().minimum(lower.sum(1))
        return top_k(alike, count, lower)

    def _action(self, view: TowerView, scores: Tensor, stays: Tensor, goes: Tensor) -> TowerKeep:
        chosen = from_mask(stays)
        columns = torch.arange(chosen.index.shape[1], device=stays.device).expand_as(chosen.index)
        spare = torch.full((len(stays), stays.shape[1] + 1), -1, device=stays.device)
        into = spare.scatter(1, torch.where(chosen.valid, chosen.index, stays.shape[1]), columns)[:, :-1]
        even = view.valid is None and bool(chosen.valid.all())
        valid = None if even else chosen.valid
        # a new token behind the others has no window of its own
        fuse = None if self.fuse == "none" or view.windowed else self._shares(scores, goes)
        return TowerKeep(chosen.index, valid, into, fuse)

    def _shares(self, scores: Tensor, goes: Tensor) -> Tensor:
        weights = scores.masked_fill(~goes, 0.0).clamp(min=0.0)
        if self.fuse == "sum":
            return weights
        return weights / weights.sum(1, keepdim=True).clamp(min=1e-30)


def _up(ratio: float, patches: Tensor) -> Tensor:
    """Patches to keep of each image [I]: rounded up, at least one."""
    counts = [max(math.ceil(ratio * count - _SLACK), min(count, 1)) for count in patches.sum(1).tolist()]
    return torch.tensor(counts, device=patches.device)


def given_blocks(blocks: Sequence[int] | None) -> tuple[int, ...] | None:
    """Blocks as a tuple, however they were given."""
    return None if blocks is None else tuple(blocks)
