"""Budgets of methods that decide for themselves how many tokens stay: their knob is set by measuring."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vlm_eff.core.errors import ConfigError, explain
from vlm_eff.core.handle import Handle
from vlm_eff.core.plugin import Plugin
from vlm_eff.models.attach import attach

_STEPS = 14


@dataclass(frozen=True)
class Knob:
    """One argument of a method that moves its token count one way, between two values.

    fixed: other arguments the method is given
    """

    name: str
    low: float
    high: float
    fixed: tuple[tuple[str, Any], ...] = ()


def mean_n_eq(handle: Handle) -> float:
    """Visual tokens averaged over layers, rows and all prefills the handle saw."""
    seen = [(report.n_eq, report.rows) for report in handle.stats().prefills if any(report.visual)]
    return sum(value * rows for value, rows in seen) / max(1, sum(rows for _, rows in seen))


def calibrate(
    model: Any, make: Callable[..., Plugin], knob: Knob, n_eq: float, run: Callable[[], object]
) -> tuple[Plugin, float]:
    """The plugin whose measured n_eq is nearest to the target, and that n_eq.

    make: the method; run: runs the model on the calibration prompts, which must not be those of the evaluation
    Found by bisection: about 16 runs. The count need not be a smooth function of the knob, so read what was reached.

    Raises:
        ConfigError: the target lies outside what the knob reaches.
    """

    def at(value: float) -> tuple[Plugin, float]:
        plugin = make(**{**dict(knob.fixed), knob.name: value})
        with attach(model, plugin) as handle:
            run()
            return plugin, mean_n_eq(handle)

    low, high = knob.low, knob.high
    tried = [at(low), at(high)]
    rising = tried[1][1] >= tried[0][1]
    least, most = sorted(reached for _, reached in tried)
    if not least - 1 <= n_eq <= most + 1:
        raise ConfigError(
            explain(
                f"n_eq={n_eq:g} by {knob.name} in [{knob.low:g}, {knob.high:g}]",
                f"{least:.1f} to {most:.1f}",
                "Choose a target in this range",
            )
        )
    for _ in range(_STEPS):
        middle = (low + high) / 2
        tried.append(at(middle))
        if (tried[-1][1] < n_eq) == rising:
            low = middle
        else:
            high = middle
    return min(tried, key=lambda found: abs(found[1] - n_eq))
