"""A ratio becomes a count in one place."""

import math
from fractions import Fraction
from typing import Any

import pytest
import torch

from vlm_eff.core.errors import ConfigError
from vlm_eff.importance.keep import Keep


@pytest.mark.parametrize(
    ("rounding", "ratio", "tokens", "count"),
    [
        ("up", 0.5, 25, 13),
        ("nearest", 0.5, 25, 13),
        ("down", 0.5, 25, 12),
        ("up", 0.3, 10, 3),  # 0.3 * 10 is 3.0000000000000004 in some orders of operation
        ("up", 0.29, 100, 29),  # 0.29 * 100 is 28.999999999999996
        ("down", 0.29, 100, 29),
        ("nearest", 0.25, 10, 3),
        ("nearest", 0.24, 10, 2),
        ("up", 1e-6, 576, 1),
        ("down", 1e-6, 576, 1),
        ("nearest", 1e-6, 576, 1),
        ("up", 1.0, 576, 576),
        ("down", 1.0, 576, 576),
        ("up", 0.111, 576, 64),
        ("down", 0.999, 1, 1),
    ],
)
def test_counts_are_rounded_as_named(rounding: Any, ratio: float, tokens: int, count: int) -> None:
    assert Keep(ratio=ratio, rounding=rounding).of_count(tokens, tokens) == count


@pytest.mark.parametrize("rounding", ["up", "nearest", "down"])
def test_decimal_ratios_round_like_exact_fractions(rounding: Any) -> None:
    rule = {"up": math.ceil, "down": math.floor, "nearest": lambda x: math.floor(x + Fraction(1, 2))}[rounding]
    for percent in range(1, 101):
        for tokens in (1, 2, 7, 10, 100, 144, 576, 1000, 2880):
            exact = Fraction(percent, 100) * tokens
            want = min(max(rule(exact), 1), tokens)
            assert Keep(ratio=percent / 100, rounding=rounding).of_count(tokens, tokens) == want, (percent, tokens)


def test_original_and_current_are_told_apart() -> None:
    assert Keep(ratio=0.5).of_count(100, 30) == 30
    assert Keep(ratio=0.2).of_count(100, 30) == 20
    assert Keep(ratio=0.5, of="current").of_count(100, 30) == 15


def test_a_count_is_never_more_than_there_are() -> None:
    assert Keep(count=10).of_count(100, 30) == 10
    assert Keep(count=40).of_count(100, 30) == 30


def test_counts_of_tensors_keep_empty_rows_empty() -> None:
    original, current = torch.tensor([[25, 0, 3]]), torch.tensor([[25, 0, 1]])
    made = Keep(ratio=0.5).counts(original, current)
    assert made.tolist() == [[13, 0, 1]]
    assert made.dtype == torch.long


def test_only_a_ratio_of_one_keeps_everything() -> None:
    assert Keep(ratio=1).everything
    assert Keep(ratio=1.0).everything
    assert not Keep(ratio=0.999999).everything
    assert not Keep(count=10**9).everything


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"ratio": 0.5, "count": 3},
        {"ratio": 0},
        {"ratio": 1.0001},
        {"ratio": -0.5},
        {"ratio": True},
        {"ratio": "half"},
        {"ratio": math.nan},
        {"count": 0},
        {"count": 2.5},
        {"count": True},
        {"ratio": 0.5, "of": "now"},
        {"ratio": 0.5, "rounding": "even"},
    ],
    ids=str,
)
def test_what_is_no_budget_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="Accepted: "):
        Keep(**wrong)
