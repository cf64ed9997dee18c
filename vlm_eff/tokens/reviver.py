"""A reducer whose dropped tokens may come back in later calls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vlm_eff.core.action import Revive
from vlm_eff.core.config import part
from vlm_eff.core.errors import ConfigError, explain
from vlm_eff.core.plugin import QueryRow, Site
from vlm_eff.importance.attention import row_scores
from vlm_eff.importance.keep import Keep, check_choice, check_ratio
from vlm_eff.importance.select import top_k
from vlm_eff.models.revive import LaterView
from vlm_eff.tokens.reducer import TokenReducer


@part
@dataclass(frozen=True)
class RevivingTokenReducer(TokenReducer):
    """Drops tokens stage by stage, and at later calls brings back those that the new query looks at.

    revive:       "steps": at decode steps and later turns of text; "turns": only in calls with several tokens; "never"
    revive_ratio: fraction of the original visual tokens that a later query may have among its best, (0, 1]; those of
                  them that are missing come back. None: as many as the stage keeps at prefill
    A stage ranks by the attention of the layer before it, where everything is that can be here.
    """

    revive: Literal["steps", "turns", "never"] = "steps"
    revive_ratio: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("revive", self.revive, ("steps", "turns", "never"))
        check_ratio("revive_ratio", self.revive_ratio)
        if self.revives and (self.position_mode != "kept" or any(stage.layer == 0 for stage in self.stages)):
            raise ConfigError(
                explain(
                    f"{self.method} with positions={self.position_mode!r} and stages {[s.layer for s in self.stages]}",
                    'positions="kept" and stages at layer 1 or later, where tokens can come back',
                    'Correct these, or use revive="never"',
                )
            )

    @property
    def revives(self) -> bool:
        return self.revive != "never" and not all(stage.keep.everything for stage in self.stages)

    def again(self, site: Site, view: LaterView) -> Revive | None:
        if self.revive == "turns" and view.new == 1:
            return None
        stage = next(stage for stage in self.stages if stage.layer == site.layer)
        logits, columns = view.query_logits(QueryRow(site.layer - 1))
        scores = row_scores(logits, columns, view.available, over="all")
        keep = stage.keep if self.revive_ratio is None else Keep(ratio=self.revive_ratio)
        best = top_k(scores, keep.counts(view.entered, view.available.sum(1)), view.available)
        return Revive(best & ~view.present)
