"""What a comparison must not fall below, for continuous integration."""

from __future__ import annotations

import math
from collections.abc import Callable

from vlm_eff.core.errors import ConfigError, explain
from vlm_eff.eval.stats.comparison import Compared, Row
from vlm_eff.eval.stats.paired import Paired

_READ: dict[str, Callable[[Row, Paired], float | None]] = {
    "acc": lambda row, paired: paired.delta.value,
    "acc_low": lambda row, paired: paired.delta.low,
    "relative": lambda row, paired: paired.relative,
    "loyalty": lambda row, paired: paired.loyalty,
    "ok": lambda row, paired: row.summary.rates["ok"],
}
EXPLAINED = (
    "acc: accuracy minus the reference's, from -1 to 1; acc_low: lower end of its interval; relative: accuracy / the "
    "reference's; loyalty: share of equal answers; ok: share of answers that could be read"
)


def read_thresholds(text: str) -> dict[str, float]:
    """Read `acc=-0.01,loyalty=0.9`.

    Raises:
        ConfigError: an unknown name, a name twice, or a value that is no number.
    """
    found: dict[str, float] = {}
    for part in text.split(","):
        name, _, value = (piece.strip() for piece in part.partition("="))
        number = _number(value)
        if name not in _READ or name in found or number is None:
            raise ConfigError(
                explain(f"--fail-under {part.strip()!r}", f"{', '.join(_READ)}, each once with a number", EXPLAINED)
            )
        found[name] = number
    return found


def missed(compared: Compared, thresholds: dict[str, float]) -> list[str]:
    """Say which methods fall below which threshold; baselines are not asked to hold any.

    A value that is not known, such as an interval over one cluster, misses its threshold.

    Raises:
        ConfigError: no method among the runs, so that nothing could be missed.
    """
    methods = [row for row in compared.rows if row.paired is not None and row.summary.kind == "method"]
    if not methods:
        raise ConfigError(
            explain("--fail-under without a run that has plugins", "one such run or more", "Add the run to check")
        )
    said = []
    for row in methods:
        for name, least in thresholds.items():
            assert row.paired is not None  # the reference was left out
            value = _READ[name](row, row.paired)
            # the thousandth of a millionth that float sums are off by is no drop
            if value is None or value < least - 1e-9:
                got = "not known" if value is None else f"{value:.4f}"
                said.append(f"{row.summary.label}: {name} is {got}, below {least:g}")
    return said


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
