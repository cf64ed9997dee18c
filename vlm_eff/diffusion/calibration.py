"""What was measured on one model, to decide by on the same: fitted without leaving what was seen, kept as JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from vlm_eff.core.config import from_dict, part, to_dict
from vlm_eff.core.denoise import DenoiseContext
from vlm_eff.core.errors import CapabilityError, ConfigError, explain
from vlm_eff.core.files import write_file

C = TypeVar("C")
BINS = 16


@part
@dataclass(frozen=True)
class Provenance:
    """Where a calibration comes from; empty names fit every model and scheduler.

    steps: of each run      size: shape of the latents of a call      runs: how many were made      date: ISO 8601
    error: mean |fit - measured| / mean |measured|
    """

    model: str = ""
    scheduler: str = ""
    steps: int = 0
    guidance: float | None = None
    size: tuple[int, ...] = ()
    runs: int = 0
    date: str = ""
    error: float = 0.0

    def check(self, context: DenoiseContext) -> None:
        """Raise `CapabilityError` for another model or scheduler."""
        for name, mine, theirs in (
            ("model", self.model, context.family),
            ("scheduler", self.scheduler, context.scheduler),
        ):
            if mine and mine != theirs:
                raise CapabilityError(
                    explain(
                        f"{theirs} with a calibration of {mine}", f"the {name} that was calibrated", "Calibrate again"
                    )
                )


@part
@dataclass(frozen=True)
class ChangeCurve:
    """Change of an output as a function of a signal: monotone, linear between knots, and not known above the last.

    signals, outputs: knots, both ascending
    """

    signals: tuple[float, ...]
    outputs: tuple[float, ...]
    made: Provenance

    def __post_init__(self) -> None:
        for values in (self.signals, self.outputs):
            if any(a > b for a, b in pairwise(values)) or len(values) != len(self.signals) or not values:
                raise ConfigError(explain(f"knots {values!r}", "as many of both, ascending", "Calibrate again"))

    def __call__(self, change: Tensor) -> Tensor:
        """Expected change of the output [R]; infinite where the signal is above all that was seen, or not a number."""
        x = torch.tensor(self.signals, dtype=torch.float32, device=change.device)
        y = torch.tensor(self.outputs, dtype=torch.float32, device=change.device)
        right = torch.searchsorted(x, change.contiguous()).clamp(1, max(len(x) - 1, 1)) if len(x) > 1 else None
        if right is None:
            made = y.expand_as(change)
        else:
            span = (x[right] - x[right - 1]).clamp_min(1e-12)
            share = ((change - x[right - 1]) / span).clamp(0, 1)
            made = y[right - 1] + share * (y[right] - y[right - 1])
        return made.where(change <= x[-1], torch.inf)


@part
@dataclass(frozen=True)
class MagnitudeTable:
    """How the size of a residual changes from step to step, one row of ratios a guidance branch.

    ratios: mean over tokens of |R_i| / |R_(i-1)|, one a step; that of step 0 is 1
    """

    ratios: tuple[tuple[float, ...], ...]
    made: Provenance

    def __post_init__(self) -> None:
        if not self.ratios or not all(row and all(value > 0 for value in row) for row in self.ratios):
            raise ConfigError(explain(f"ratios {self.ratios!r}", "positive numbers, one a step", "Calibrate again"))

    def ratio(self, index: int, count: int, branch: int) -> float:
        """Ratio at step `index` of `count`; where another number was calibrated, that of the nearest place."""
        row = self.ratios[min(branch, len(self.ratios) - 1)]
        place = round(index * (len(row) - 1) / (count - 1)) if count > 1 else len(row) - 1
        return row[min(place, len(row) - 1)]


def fit_curve(pairs: list[tuple[float, float]], made: dict[str, Any]) -> ChangeCurve:
    """Monotone curve through pairs of signal and output: means of up to 16 bins, made ascending by pooling neighbours.

    made: what `Provenance` says, without the error

    Raises:
        ConfigError: fewer than two pairs.
    """
    found = sorted((x, y) for x, y in pairs if x == x and y == y)
    if len(found) < 2:
        raise ConfigError(explain(f"{len(found)} pairs of steps", "at least two", "Calibrate with more steps"))
    bins = min(BINS, len(found))
    cuts = [number * len(found) // bins for number in range(bins + 1)]
    pools: list[list[tuple[float, float]]] = []
    for a, b in pairwise(cuts):
        pools.append(found[a:b])
        while len(pools) > 1 and _mean(pools[-2], 1) > _mean(pools[-1], 1):
            pools[-2:] = [pools[-2] + pools[-1]]
    xs = [0.0, *(_mean(pool, 0) for pool in pools), found[-1][0]]
    ys = [0.0, *(_mean(pool, 1) for pool in pools), _mean(pools[-1], 1)]
    curve = ChangeCurve(tuple(xs), tuple(ys), Provenance(**made))
    fitted = curve(torch.tensor([x for x, _ in found])).tolist()
    scale = sum(abs(y) for _, y in found) or 1.0
    error = sum(abs(f - y) for f, (_, y) in zip(fitted, found, strict=True) if f != float("inf")) / scale
    return ChangeCurve(curve.signals, curve.outputs, Provenance(**made, error=error))


def _mean(pool: list[tuple[float, float]], axis: int) -> float:
    return sum(pair[axis] for pair in pool) / len(pool)


def save_calibration(calibration: ChangeCurve | MagnitudeTable, path: str | Path) -> None:
    """Write a calibration as JSON."""
    write_file(Path(path), json.dumps(to_dict(calibration), indent=2) + "\n")


def read_calibration(source: Any, kind: type[C], method: str) -> C:
    """A calibration from a file, or as it was given.

    Raises:
        ConfigError: None, a file that cannot be read, or something of another kind.
    """
    if isinstance(source, str | Path):
        try:
            source = from_dict(json.loads(Path(source).read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise ConfigError(
                explain(f"calibration={str(source)!r}: {error}", f"a file that calibrate_{method} wrote", "Calibrate")
            ) from None
    if not isinstance(source, kind):
        raise ConfigError(
            explain(
                f"{method} with calibration={source!r}",
                f"a {kind.__name__} or the path of one",
                f"Make one: vlm_eff.diffusion.calibrate_{method}(pipe, call, save=path)",
            )
        )
    return source
