"""The plugin that scales attention logits by the modality of query and key."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vlm_eff.core.cache import LogitSite, ScaleLogits
from vlm_eff.core.config import part
from vlm_eff.core.errors import ConfigError, explain
from vlm_eff.core.plugin import BindContext, Plugin
from vlm_eff.core.resources import Resource
from vlm_eff.importance.keep import is_number
from vlm_eff.kvcache.policy import check_cache


@part
@dataclass(frozen=True)
class LogitTable(Plugin):
    """Scales the logits of every layer by a table, in prompts and while decoding.

    factors: of logits; a line for queries that are text, image, video, with a column for each kind of key
    """

    method: str
    factors: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        square = len(self.factors) == 3 and all(len(line) == 3 for line in self.factors)
        if not square or not all(
            is_number(factor) and abs(factor) < float("inf") for row in self.factors for factor in row
        ):
            got, accepted = f"factors {self.factors!r}", "finite numbers, three lines of three"
            raise ConfigError(explain(got, accepted, "Give numbers such as text_to_image=1.2"))

    @property
    def name(self) -> str:
        return self.method

    @property
    def sites(self) -> tuple[LogitSite, ...]:
        return (LogitSite(),)

    @property
    def writes(self) -> frozenset[Resource]:
        return frozenset({Resource.LOGITS})

    def bind(self, context: BindContext) -> LogitTable:
        check_cache(self.name, context)
        return self

    def at(self, site: LogitSite, view: Any) -> ScaleLogits:
        return ScaleLogits(self.factors)
