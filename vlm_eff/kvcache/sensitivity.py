"""How much an answer changes with an entry: gradients of a scoring forward."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from vlm_eff.core.cache import CacheGradients
from vlm_eff.core.config import part
from vlm_eff.core.errors import ConfigError, explain
from vlm_eff.core.plugin import Observation
from vlm_eff.importance.keep import check_choice, is_number
from vlm_eff.models.kv.view import Entries


@part
@dataclass(frozen=True)
class AnswerSensitivity:
    """Gradients of the answer with respect to an entry.

    form:  "gradient" |dy/dk|^2; "taylor" |k dy/dk| + |v dy/dv|, what the answer loses when both go to zero
    cross: weight of the squared gradient that arrives through the next layer's keys of other modalities
    of:    what the answer y is, see `CacheGradients`
    """

    form: Literal["gradient", "taylor"] = "gradient"
    cross: float = 0.0
    of: Literal["greedy", "logits"] = "greedy"

    def __post_init__(self) -> None:
        check_choice("form", self.form, ("gradient", "taylor"))
        check_choice("of", self.of, ("greedy", "logits"))
        if not is_number(self.cross) or self.cross < 0:
            raise ConfigError(explain(f"cross={self.cross!r}", "a number of at least 0", "Give the weight, 0 for none"))
        if self.cross and self.form == "taylor":
            raise ConfigError(
                explain(f"cross={self.cross} with form='taylor'", 'cross with form="gradient"', "Leave one of them out")
            )

    @property
    def _need(self) -> CacheGradients:
        return CacheGradients(self.of, self.cross > 0)

    @property
    def needs(self) -> tuple[Observation, ...]:
        return (self._need,)

    def __call__(self, entries: Entries) -> Tensor:
        made, width = entries.gradient(self._need).float(), entries.key.shape[3]
        keys, values = made[..., :width], made[..., width : width + entries.value.shape[3]]
        if self.form == "taylor":
            lost = [(x.float() * g).sum(-1).abs() for x, g in ((entries.key, keys), (entries.value, values))]
            return lost[0] + lost[1]
        score = keys.square().sum(-1)
        return score + self.cross * made[..., -1] if self.cross else score
