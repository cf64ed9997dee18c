"""Rules that read the number of tokens to keep off the scores, for `Keep(rule=...)`. Each row decides for itself."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from vlm_eff.core.config import part
from vlm_eff.core.errors import ConfigError, explain
from vlm_eff.importance import adaptive


class Rule(Protocol):
    """Says how many tokens each row needs."""

    def __call__(self, scores: Tensor, valid: Tensor) -> Tensor:
        """Number of tokens [B] to keep of the existing ones (`valid` [B, V]) with `scores` [B, V]; may be 0."""
        ...


@part
@dataclass(frozen=True)
class Mass:
    """As few of the best tokens as hold a fraction of the row's scores (top-p, ZipVL).

    mass: fraction (0, 1]
    temperature: None takes the scores as they are, which must not be negative (attention); a number takes the softmax
        of scores / temperature over the row's tokens, for scores of any sign
    """

    mass: float
    temperature: float | None = None

    def __post_init__(self) -> None:
        if not _number(self.mass) or not 0 < self.mass <= 1:
            raise ConfigError(
                explain(f"keep_mass={self.mass!r}", "a fraction in (0, 1]", "Give the share, such as keep_mass=0.9")
            )
        if self.temperature is not None and (not _number(self.temperature) or self.temperature <= 0):
            raise ConfigError(
                explain(f"temperature={self.temperature!r}", "a number above 0, or None", "Give a larger temperature")
            )

    def __call__(self, scores: Tensor, valid: Tensor) -> Tensor:
        if self.temperature is not None:
            scores = (scores.double() / self.temperature).masked_fill(~valid, -math.inf).softmax(1).nan_to_num(0.0)
        elif bool(((scores < 0) & valid).any()):
            raise ConfigError(
                explain(
                    "keep_mass with scores below 0, which have no share of a sum",
                    "scores of at least 0, or a temperature",
                    "Use Keep(rule=Mass(mass, temperature=1.0))",
                )
            )
        return adaptive.mass_count(scores, self.mass, valid)


@part
@dataclass(frozen=True)
class Outliers:
    """The tokens above the upper fence of the row's scores, Q3 + factor * (Q3 - Q1) (LLaVA-PruMerge, TRIM)."""

    factor: float = 1.5

    def __post_init__(self) -> None:
        _finite("factor", self.factor)

    def __call__(self, scores: Tensor, valid: Tensor) -> Tensor:
        return adaptive.outlier_count(scores, self.factor, valid)


@part
@dataclass(frozen=True)
class Deviations:
    """The tokens that score more than the row's mean plus `kappa` of its standard deviations (ATP-style threshold)."""

    kappa: float = 0.0

    def __post_init__(self) -> None:
        _finite("kappa", self.kappa)

    def __call__(self, scores: Tensor, valid: Tensor) -> Tensor:
        return adaptive.threshold_count(scores, adaptive.deviation(scores, self.kappa, valid), valid)


@part
@dataclass(frozen=True)
class Above:
    """The tokens that score more than a fixed threshold, for scores whose size means something."""

    threshold: float

    def __post_init__(self) -> None:
        _finite("threshold", self.threshold)

    def __call__(self, scores: Tensor, valid: Tensor) -> Tensor:
        return adaptive.threshold_count(scores, scores.new_full(scores.shape[:1], self.threshold), valid)


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _finite(name: str, value: object) -> None:
    if not _number(value) or not math.isfinite(value):  # type: ignore[arg-type]
        raise ConfigError(explain(f"{name}={value!r}", "a finite number", f"Give {name} as a number"))
