"""How many tokens to keep: the only place where a ratio becomes a count."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from vlm_eff.core.config import part
from vlm_eff.core.errors import ConfigError, explain
from vlm_eff.importance.rules import Mass, Rule

Rounding = Literal["up", "nearest", "down"]
# a product such as 0.29 * 100 must not fall on the wrong side of a whole number by a float's last digit
_SLACK = 1e-9


@part
@dataclass(frozen=True)
class Keep:
    """A budget of visual tokens. Give exactly one of `ratio`, `count`, `mass`, `rule`.

    ratio:    fraction (0, 1] of the tokens, see `of`
    count:    tokens, at least `least`; never more than there are
    of:       "original" counts what entered the language model, "current" what is left at this stage
    rounding: house rule is "up"; methods whose official code rounds otherwise say so
    least:    tokens that stay in any case; 0 for the methods that may drop every visual token
    mass:     as few of the best of what is left as hold this fraction (0, 1] of the scores; needs scores of at least 0
    rule:     any other way to read the number off the scores, see `rules.py`; needs a score
    """

    ratio: float | None = None
    count: int | None = None
    of: Literal["original", "current"] = "original"
    rounding: Rounding = "up"
    least: int = 1
    mass: float | None = None
    rule: Rule | None = None

    def __post_init__(self) -> None:
        named = {"keep_ratio": self.ratio, "keep_count": self.count, "keep_mass": self.mass, "rule": self.rule}
        check_one(named, "Give keep_ratio in (0, 1], keep_count of at least 1, or keep_mass in (0, 1]")
        if self.mass is not None:
            Mass(self.mass)
        check_ratio("keep_ratio", self.ratio)
        whole = isinstance(self.count, int) and not isinstance(self.count, bool)
        if self.count is not None and (not whole or self.count < self.least):
            raise ConfigError(
                explain(
                    f"keep_count={self.count!r}",
                    f"a whole number of at least {self.least}",
                    "Give the number of tokens to keep",
                )
            )
        check_choice("of", self.of, ("original", "current"))
        check_choice("rounding", self.rounding, ("up", "nearest", "down"))

    @property
    def everything(self) -> bool:
        """True when no token can be dropped."""
        return self.ratio == 1 or self.mass == 1

    @property
    def adaptive(self) -> bool:
        """True when the number follows from the scores, so that nobody knows it before."""
        return self.mass is not None or self.rule is not None

    @property
    def nothing(self) -> bool:
        """True when no token can stay."""
        return self.count == 0

    def of_count(self, original: float, current: float) -> int:
        """Tokens to keep of `current`, when there were `original` at the start."""
        if self.adaptive:
            raise ConfigError(
                explain(f"{self} where there are no scores", "keep_ratio or keep_count", "Give one of them here")
            )
        if self.count is not None:
            return int(min(self.count, current))
        base = original if self.of == "original" else current
        wanted = (self.ratio or 0.0) * base
        rounded = {
            "up": math.ceil(wanted - _SLACK),
            "down": math.floor(wanted + _SLACK),
            # halves go up, as the official FastV demo's Python `round` does for the odd counts in use
            "nearest": math.floor(wanted + 0.5 + _SLACK),
        }[self.rounding]
        return int(min(max(rounded, self.least), current))

    def by_scores(self, scores: Tensor, valid: Tensor, original: Tensor) -> Tensor:
        """Tokens to keep of each row [B] int64, by the scores [B, V] of those that are left (`valid` [B, V])."""
        current = valid.sum(1)
        if not self.adaptive:
            return self.counts(original, current)
        rule = self.rule if self.mass is None else Mass(self.mass)
        assert rule is not None
        return rule(scores, valid).clamp(min=self.least).minimum(current)

    def counts(self, original: Tensor, current: Tensor) -> Tensor:
        """Element-wise `of_count` for counts [...] on any device -> [...] int64; 0 stays 0."""
        pairs = zip(original.flatten().tolist(), current.flatten().tolist(), strict=True)
        made = [self.of_count(first, now) if now else 0 for first, now in pairs]
        return torch.tensor(made, dtype=torch.long, device=current.device).view(current.shape)


def is_number(value: object) -> bool:
    """True for a finite int or float that is no bool."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def check_one(named: Mapping[str, object], todo: str) -> None:
    """Raise `ConfigError`, with `todo` for advice, unless exactly one of the named values is given."""
    given = {name: value for name, value in named.items() if value is not None}
    if len(given) != 1:
        got = " and ".join(f"{name}={value}" for name, value in given.items()) or "no keep_ratio or keep_count"
        raise ConfigError(explain(got, "exactly one of " + ", ".join(named), todo))


def check_ratio(name: str, value: float | None) -> None:
    """Raise `ConfigError` unless `value` is None or a fraction in (0, 1]."""
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 1:
        raise ConfigError(
            explain(f"{name}={value!r}", "a fraction in (0, 1]", f"Give the fraction to keep, such as {name}=0.5")
        )


def check_whole(name: str, value: object, least: int = 1) -> None:
    """Raise `ConfigError` unless `value` is a whole number of at least `least`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigError(explain(f"{name}={value!r}", f"a whole number of at least {least}", f"Correct {name}"))


def check_several(name: str, values: object, accepted: str) -> tuple[Any, ...]:
    """The values as a tuple; `ConfigError`, with what is accepted, for something that is no list."""
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise ConfigError(explain(f"{name}={values!r}", accepted, f"Give a list for {name}"))
    return tuple(values)


def check_choice(name: str, value: object, choices: tuple[object, ...]) -> None:
    """Raise `ConfigError` unless `value` is one of `choices`."""
    if value not in choices:
        raise ConfigError(explain(f"{name}={value!r}", ", ".join(map(repr, choices)), "Choose one of them"))
