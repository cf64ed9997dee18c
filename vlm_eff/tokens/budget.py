"""From a target of n_eq (visual tokens averaged over layers) to each method's own knob."""

from __future__ import annotations

from typing import Any

from vlm_eff.core.config import build
from vlm_eff.core.errors import ConfigError, explain
from vlm_eff.core.plugin import BindContext, Plugin
from vlm_eff.core.registry import METHODS

_STEPS = 60


def for_budget(method: str, *, n_eq: float, visual_tokens: int, num_layers: int, **fixed: Any) -> Plugin:
    """The method with the `keep_ratio` that brings n_eq nearest to the target.

    n_eq:          tokens, mean over the decoder's layers, of `visual_tokens` that enter it
    fixed:         other arguments of the method, such as `layer=2`
    A ratio is found by bisection on what the plugin asks for; FEATHER's union with its grid is counted as expected for
    independent choices, and average_pool may get fewer tokens than asked.

    Raises:
        ConfigError: an unknown method, one without `keep_ratio`, or a target that it cannot reach (the message says
            what it can).
    """
    make = METHODS.get(method).make

    def at(ratio: float) -> tuple[float, Plugin]:
        made: Plugin = build(make, {**fixed, "keep_ratio": ratio}, what=f"method {method!r}")
        bound = made.bind(BindContext("budget", num_layers))
        return sum(bound.asked(visual_tokens, num_layers)) / num_layers, made

    low, high = 1e-6, 1.0
    least, most = at(low)[0], at(high)[0]
    if not least - 1 <= n_eq <= most + 1e-9:
        raise ConfigError(
            explain(
                f"n_eq={n_eq:g} for {method} with {visual_tokens} tokens and {num_layers} layers",
                f"{least:.1f} to {most:.1f}",
                "Choose a target in this range, or an earlier layer",
            )
        )
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if at(middle)[0] < n_eq else (low, middle)
    return min((at(low), at(high)), key=lambda found: abs(found[0] - n_eq))[1]
