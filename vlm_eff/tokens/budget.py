"""From a target of n_eq (visual tokens averaged over layers) to each method's own knob."""

from __future__ import annotations

import inspect
import math
from typing import Any

from vlm_eff.core.config import build
from vlm_eff.core.errors import ConfigError, explain
from vlm_eff.core.plugin import BindContext, Plugin
from vlm_eff.core.registry import METHODS

_STEPS = 60


def for_budget(method: str, *, n_eq: float, visual_tokens: int, num_layers: int, **fixed: Any) -> Plugin:
    """The method at a budget of visual tokens, see `settings_for_budget`."""
    settings = settings_for_budget(method, n_eq=n_eq, visual_tokens=visual_tokens, num_layers=num_layers, **fixed)
    made: Plugin = build(METHODS.get(method).make, settings, what=f"method {method!r}")
    return made


def settings_for_budget(
    method: str, *, n_eq: float, visual_tokens: int, num_layers: int, **fixed: Any
) -> dict[str, Any]:
    """The `keep_ratio` that brings n_eq nearest to the target, beside `fixed`; the `layer` of a method without a ratio.

    n_eq:          tokens, mean over the decoder's layers, of `visual_tokens` that enter it
    fixed:         other arguments of the method, such as `layer=2`
    A ratio is found by bisection on what the plugin asks for; FEATHER's union with its grid is counted as expected for
    independent choices, and average_pool may get fewer tokens than asked.

    Raises:
        ConfigError: an unknown method, one with neither knob, or a target that it cannot reach (the message says
            what it can).
    """
    make = METHODS.get(method).make
    parameters = inspect.signature(make).parameters
    knob = "layer" if "keep_ratio" not in parameters and "layer" in parameters else "keep_ratio"
    if knob not in parameters:
        raise _no_knob(f"{method}, which has neither a keep_ratio nor a layer", n_eq)

    def at(value: float) -> tuple[float, dict[str, Any]]:
        settings = {**fixed, knob: value}
        bound = build(make, settings, what=f"method {method!r}").bind(BindContext("budget", num_layers))
        return sum(bound.asked(visual_tokens, num_layers)) / num_layers, settings

    if knob == "layer":
        found = [at(layer) for layer in range(1, num_layers)]
        # a layer more or less is a step of n_eq, and the nearest one may be half a step off
        below = above = visual_tokens / num_layers / 2
        least, most = found[0][0], found[-1][0]
    else:
        low, high = 1e-6, 1.0
        least, most, below, above = at(low)[0], at(high)[0], 1, 1e-9
    if math.isnan(least):
        raise _no_knob(f"{method}, whose number of tokens follows from scores or layout", n_eq)
    if least == most == visual_tokens > n_eq:
        raise _no_knob(f"{method}, which leaves every visual token in the language model", n_eq)
    if not least - below <= n_eq <= most + above:
        raise ConfigError(
            explain(
                f"n_eq={n_eq:g} for {method} with {visual_tokens} tokens and {num_layers} layers",
                f"{least:.1f} to {most:.1f}",
                "Choose a target in this range, or an earlier layer",
            )
        )
    if knob == "keep_ratio":
        for _ in range(_STEPS):
            middle = (low + high) / 2
            low, high = (middle, high) if at(middle)[0] < n_eq else (low, middle)
        found = [at(low), at(high)]
    return min(found, key=lambda pair: abs(pair[0] - n_eq))[1]


def _no_knob(method: str, n_eq: float) -> ConfigError:
    return ConfigError(
        explain(
            f"{method}, with n_eq={n_eq:g}",
            "methods that keep a ratio or a count",
            "Give the method its own settings, and read n_eq off handle.stats()",
        )
    )
