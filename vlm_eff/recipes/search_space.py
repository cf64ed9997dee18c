"""What the tuner searches: where visual tokens go and how many at each stage, and how the cache is stored.

Numbers in, plugins out: a candidate is a flat dict of names, whole numbers and fractions, and nothing here looks at a
tensor. Tokens go before the language model, between its layers in one to three stages, or both. The stages say how the
drop is spread; how far it goes is solved for, so that a candidate has the tokens it asks for, averaged over the layers,
whatever its schedule. Cache settings are sized the same way from the share of bytes that may be left.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from vlm_eff.core.config import parse_spec
from vlm_eff.core.errors import ConfigError, explain
from vlm_eff.core.plugin import BindContext, Plugin
from vlm_eff.core.registry import METHODS
from vlm_eff.importance.keep import Keep
from vlm_eff.tokens.reducer import TokenReducer

# before the language model, and between its layers; others have no ratio that a schedule could set
ENTRIES = ("divprune", "cdpruner", "visionzip", "vispruner", "fastervlm", "uniform_grid", "average_pool")
DECODERS = ("pyramiddrop", "fastv", "feather", "dart", "sparsevlm", "v2drop", "magnitude_drop", "redundancy_drop")
EVICTORS = ("snapkv", "adakv", "pyramidkv", "vl_cache", "look_m")
FORMATS = (
    "kivi:bits=8",
    "kivi:bits=4",
    "kivi:bits=2",
    "visual_quant:bits=4",
    "visual_quant:bits=2",
    "zipvl_kv:high_bits=8,low_bits=4",
    "zipvl_kv:high_bits=4,low_bits=2",
)
_STAGES = 3
_HALVINGS = 30
# of what stands beside packed numbers: scales, zero points
_OVERHEAD_BITS = 1.0


class Draw(Protocol):
    """Whoever chooses: an optimiser, or a list of numbers in a test."""

    def choice(self, name: str, options: Sequence[str]) -> str:
        """One of several names."""
        ...

    def whole(self, name: str, low: int, high: int) -> int:
        """A whole number from `low` to `high`."""
        ...

    def real(self, name: str, low: float, high: float) -> float:
        """A number from `low` to `high`."""
        ...


@dataclass(frozen=True)
class Space:
    """Which candidates there are for one model.

    visual_tokens, prompt_tokens: of a usual question, the first among the second; num_layers: of the decoder
    value_bits: of a number in the bare cache
    tokens:  largest share of the visual tokens, averaged over layers, that a budget leaves; None: all of them stay
    cache:   largest share of the cache's bytes; None: the cache stays as it is
    entries, decoders, evictors, formats: methods that may be chosen
    """

    num_layers: int
    visual_tokens: int
    prompt_tokens: int
    value_bits: int = 32
    tokens: float | None = None
    cache: float | None = None
    entries: tuple[str, ...] = ENTRIES
    decoders: tuple[str, ...] = DECODERS
    evictors: tuple[str, ...] = EVICTORS
    formats: tuple[str, ...] = FORMATS

    def __post_init__(self) -> None:
        for name in ("tokens", "cache"):
            share = getattr(self, name)
            if share is not None and not 0 < share <= 1:
                raise ConfigError(explain(f"{name}={share!r}", "above 0, up to 1", "Give a share of what there is"))
        if self.tokens is None and self.cache is None:
            raise ConfigError(explain("neither tokens nor cache", "one of them or both", "Give a budget"))

    def draw(self, by: Draw) -> dict[str, Any]:
        """The numbers of one candidate, chosen one after the other."""
        made: dict[str, Any] = {}
        if self.tokens is not None:
            made |= self._draw_tokens(by)
        if self.cache is not None:
            made |= self._draw_cache(by)
        return made

    def starts(self) -> list[dict[str, Any]]:
        """Every method by itself, as near to its own schedule as the space has it: where a search begins.

        Where both kinds are searched, each method stands beside the first one of the other kind: in a pair of two
        strangers nobody would see which of them spoils it.
        """
        tokens = [self._start(name) for name in (*self.decoders, *self.entries)] if self.tokens is not None else [{}]
        if self.cache is None:
            return tokens
        caches: list[dict[str, Any]] = [{"cache": "bits", "bits": name} for name in self.formats]
        caches += [{"cache": "evict", "evict": name, "cache_fill": 1.0} for name in self.evictors]
        return [*(one | caches[0] for one in tokens), *(tokens[0] | one for one in caches[1:])]

    def plugins(self, params: Mapping[str, Any]) -> tuple[Plugin, ...]:
        """The plugins of a candidate.

        Raises:
            ConfigError: a schedule that begins too late to reach its share of the tokens.
        """
        reducers: tuple[Plugin, ...] = self._reducers(params) if "where" in params else ()
        return (*reducers, *(self._cache(params) if "cache" in params else ()))

    def n_eq(self, plugins: Sequence[Plugin]) -> float:
        """Visual tokens, averaged over the layers, that plugins ask for together."""
        asked = [
            plugin.bind(BindContext("tuning", self.num_layers)).asked(self.visual_tokens, self.num_layers)
            for plugin in plugins
            if isinstance(plugin, TokenReducer)
        ]
        return sum(map(min, zip(*asked, strict=True))) / self.num_layers if asked else float(self.visual_tokens)

    def _draw_tokens(self, by: Draw) -> dict[str, Any]:
        places = [name for name, there in (("entry", self.entries), ("decoder", self.decoders)) if there]
        where = by.choice("where", (*places, "both") if len(places) == 2 else places)
        made: dict[str, Any] = {"where": where, "tokens": by.real("tokens", 0.7, 1.0)}
        if where != "decoder":
            made["entry"] = by.choice("entry", self.entries)
        if where != "entry":
            made["decoder"] = by.choice("decoder", self.decoders)
            made["stages"] = by.whole("stages", 1, _STAGES)
            made["first"] = by.whole("first", 1, max(1, self.num_layers // 2))
            made["step"] = by.whole("step", 1, max(1, self.num_layers // 3))
            for stage in range(0 if where == "both" else 1, made["stages"] + 1):
                made[f"drop_{stage}"] = by.real(f"drop_{stage}", 0.05, 1.0)
        return made

    def _draw_cache(self, by: Draw) -> dict[str, Any]:
        # what a token method leaves may be small enough by itself
        kinds = [name for name, there in (("evict", self.evictors), ("bits", self.formats)) if there]
        kinds = [*kinds, "both"] if len(kinds) == 2 else kinds
        made: dict[str, Any] = {"cache": by.choice("cache", (*kinds, "none") if self.tokens is not None else kinds)}
        if made["cache"] in ("evict", "both"):
            made["evict"] = by.choice("evict", self.evictors)
            made["cache_fill"] = by.real("cache_fill", 0.5, 1.2)
            if _takes(made["evict"], "adaptive_share"):
                made["spread"] = by.real("spread", 0.0, 1.0)
        if made["cache"] in ("bits", "both"):
            made["bits"] = by.choice("bits", self.formats)
        return made

    def _start(self, name: str) -> dict[str, Any]:
        if name in self.entries:
            return {"where": "entry", "tokens": 1.0, "entry": name}
        layers = [site.layer for site in _template(name).bind(BindContext("tuning", self.num_layers)).sites]
        layers = layers[:_STAGES]
        first = min(layers[0], max(1, self.num_layers // 2))
        # a small budget is used up by layers that see every token: then a method begins at layer 1
        if first > (self.tokens or 1.0) * self.num_layers * 2 / 3:
            first = 1
        first = max(first, 1)
        step = min(layers[1] - layers[0] if len(layers) > 1 else 1, max(1, self.num_layers // 3))
        drops = {f"drop_{stage}": 0.5 for stage in range(1, len(layers) + 1)}
        return {
            "where": "decoder",
            "tokens": 0.95,
            "decoder": name,
            "stages": len(layers),
            "first": first,
            "step": step,
        } | drops

    def _reducers(self, params: Mapping[str, Any]) -> tuple[Plugin, ...]:
        target = params["tokens"] * (self.tokens or 1.0) * self.visual_tokens

        def at(strength: float) -> tuple[Plugin, ...]:
            return self._staged(params, strength)

        # every stage keeps exp(-strength * what was dropped up to it): more strength, fewer tokens
        low, high = 0.0, math.log(self.visual_tokens) / 0.05
        least = self.n_eq(at(high))
        if least > target + 1:
            raise ConfigError(
                explain(
                    f"{target:.1f} tokens by {params.get('decoder', params.get('entry'))}, which begins too late",
                    f"{least:.1f} or more",
                    "Choose an earlier first layer",
                )
            )
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            low, high = (middle, high) if self.n_eq(at(middle)) > target else (low, middle)
        return at(high)

    def _staged(self, params: Mapping[str, Any], strength: float) -> tuple[Plugin, ...]:
        made: list[Plugin] = []
        gone = 0.0
        if params["where"] != "decoder":
            gone += params.get("drop_0", 1.0)
            made.append(METHODS.get(params["entry"]).make(keep_ratio=self._ratio(strength * gone)))
        if params["where"] != "entry":
            template, stages = _template(params["decoder"]), []
            for number in range(params["stages"]):
                layer = params["first"] + number * params["step"]
                if layer >= self.num_layers:
                    break
                gone += params[f"drop_{number + 1}"]
                keep = Keep(ratio=self._ratio(strength * gone), rounding="nearest")
                stage = template.stages[min(number, len(template.stages) - 1)]
                stages.append(replace(stage, keep=keep, layer=layer, depth=None))
            made.append(replace(template, stages=tuple(stages)))
        return tuple(made)

    def _ratio(self, gone: float) -> float:
        # at least one token, and digits enough for any number of them
        return round(max(math.exp(-gone), 1 / self.visual_tokens), 5)

    def _cache(self, params: Mapping[str, Any]) -> tuple[Plugin, ...]:
        made: list[Plugin] = []
        bits = params.get("bits")
        if "evict" in params:
            # a ratio of the whole prompt, dropped tokens included, as those of the methods are
            keep = (self.cache or 1.0) * params["cache_fill"] / (self._stored(bits) if bits else 1.0)
            made.append(self._evictor(params["evict"], min(1.0, keep), params.get("spread")))
        if bits:
            name, arguments = parse_spec(bits)
            made.append(METHODS.get(name).make(**arguments, **self._sized(name)))
        return tuple(made)

    def _stored(self, spec: str) -> float:
        """About what a format leaves of the bytes; what it really leaves is measured."""
        arguments = parse_spec(spec)[1]
        bits = [float(value) for key, value in arguments.items() if key.endswith("bits")]
        return min(1.0, (sum(bits) / len(bits) + _OVERHEAD_BITS) / self.value_bits)

    def _evictor(self, name: str, keep: float, spread: float | None) -> Plugin:
        spreads = {} if spread is None else {"adaptive_share": round(spread, 3)}
        made: Plugin = METHODS.get(name).make(keep_ratio=round(keep, 4), **spreads, **self._sized(name))
        return made

    def _sized(self, name: str) -> dict[str, int]:
        """Windows made for thousands of tokens would be all of a short prompt."""
        small = {"window": 40, "recent": 8, "random": 8, "residual": 4}
        known = inspect.signature(METHODS.get(name).make).parameters
        made = {}
        for key, part in small.items():
            default = known[key].default if key in known else None
            if isinstance(default, int) and default > 0:
                # KIVI stores whole groups
                least = 32 if key == "residual" else 4
                made[key] = min(default, max(least, self.prompt_tokens // part // least * least))
        return made


def _takes(name: str, argument: str) -> bool:
    return argument in inspect.signature(METHODS.get(name).make).parameters


def _template(name: str) -> TokenReducer:
    made = METHODS.get(name).make()
    if not isinstance(made, TokenReducer):
        raise ConfigError(explain(f"{name} in a schedule", "methods with stages", "Leave it out"))
    # what goes entirely has no ratio
    stages = tuple(stage for stage in made.stages if not stage.keep.nothing)
    return replace(made, stages=stages)
