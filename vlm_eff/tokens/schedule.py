"""When tokens are reduced, and to how many."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from vlm_eff.core.config import part
from vlm_eff.core.errors import ConfigError, explain
from vlm_eff.importance.keep import Keep
from vlm_eff.tokens.reduce.drop import Reduce
from vlm_eff.tokens.scores import Score
from vlm_eff.tokens.select import Select, TopK


@part
@dataclass(frozen=True)
class Stage:
    """One reduction at the input of a decoder layer.

    layer: 0-based; 0 is "before the language model". Or depth: a fraction of the decoder, resolved when attached.
    score, select: how tokens are chosen; score None means that the reduction looks for itself (pooling)
    reduce: what becomes of the tokens, where this stage differs from the method's others
    """

    keep: Keep
    layer: int | None = None
    depth: float | None = None
    score: Score | None = None
    select: Select = field(default_factory=TopK)
    reduce: Reduce | None = None

    def __post_init__(self) -> None:
        if (self.layer is None) == (self.depth is None):
            raise ConfigError(
                explain(f"layer={self.layer} and depth={self.depth}", "exactly one of the two", "Give layer or depth")
            )
        if self.layer is not None and (
            isinstance(self.layer, bool) or not isinstance(self.layer, int) or self.layer < 0
        ):
            raise ConfigError(explain(f"layer={self.layer!r}", "a whole number of at least 0", "Give a decoder layer"))
        if self.depth is not None and not 0 < self.depth < 1:
            raise ConfigError(explain(f"depth={self.depth!r}", "a fraction between 0 and 1", "Give a smaller depth"))
        if self.keep.adaptive and self.score is None:
            raise ConfigError(
                explain(f"{self.keep} in a stage without a score", "a score to read the number off", "Give score=")
            )

    def resolved(self, num_layers: int) -> Stage:
        """The stage with a layer of a decoder with `num_layers` layers."""
        if self.depth is None:
            return self
        return replace(self, layer=max(1, round(self.depth * num_layers)), depth=None)


def resolve(stages: Sequence[Stage], num_layers: int) -> tuple[Stage, ...]:
    """The stages with layers of a decoder; where depths of a shallow one fall together, the later one moves on."""
    made: list[Stage] = []
    for stage in stages:
        found = stage.resolved(num_layers)
        before = made[-1].layer if made else None
        if stage.depth is not None and before is not None and found.layer is not None and found.layer <= before:
            found = replace(found, layer=before + 1)
        made.append(found)
    return tuple(made)


def check_layers(layers: Sequence[int] | None, count: int | None = None) -> None:
    """Raise `ConfigError` unless `layers` is None or an ascending sequence of layers (of `count` of them)."""
    if layers is None:
        return
    if not isinstance(layers, Sequence) or isinstance(layers, str):
        raise ConfigError(explain(f"layers={layers!r}", "a sequence of layers, such as (8, 16, 24)", "Give a tuple"))
    ascending = all(isinstance(item, int) for item in layers) and list(layers) == sorted(set(layers))
    if not layers or not ascending or (count is not None and len(layers) != count):
        accepted = f"{count or 'one or more'} ascending layers, such as (8, 16, 24)"
        raise ConfigError(explain(f"layers={tuple(layers)!r}", accepted, "Correct the layers"))
