"""Reading gold answers: each function returns one part of `gold` or says what is wrong with it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from vlm_eff.core.errors import InputError, explain
from vlm_eff.eval.metrics.metric import Gold

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def _wrong(key: str, value: Any, accepted: str) -> InputError:
    return InputError(explain(f"gold[{key!r}] = {value!r}", accepted, "Correct the reader of this task"))


def text_of(gold: Gold, key: str = "answer") -> str:
    """A string."""
    value = gold.get(key)
    if not isinstance(value, str):
        raise _wrong(key, value, "a string")
    return value


def texts_of(gold: Gold, key: str = "answers") -> list[str]:
    """One string or more."""
    value = gold.get(key)
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise _wrong(key, value, "a list of one string or more")
    if not all(isinstance(one, str) for one in value):
        raise _wrong(key, value, "a list of strings")
    return list(value)


def yes_or_no(gold: Gold) -> str:
    """`gold["answer"]` as "yes" or "no"."""
    value = text_of(gold).strip().lower()
    if value not in ("yes", "no"):
        raise _wrong("answer", gold["answer"], "yes or no")
    return value


def options_of(gold: Gold) -> dict[str, str]:
    """The texts of the options by their letters, from A on."""
    texts = texts_of(gold, "options")
    if not 2 <= len(texts) <= len(LETTERS):
        raise _wrong("options", texts, f"2 to {len(LETTERS)} options")
    return dict(zip(LETTERS, texts, strict=False))


def letter_of(gold: Gold) -> str:
    """`gold["answer"]` as the letter of one of the options."""
    value, options = text_of(gold).strip().upper(), options_of(gold)
    if value not in options:
        raise _wrong("answer", gold["answer"], f"one of the letters {', '.join(options)}")
    return value


def numbers_of(gold: Gold, key: str, count: int) -> list[float]:
    """So many finite numbers."""
    value = gold.get(key)
    fits = isinstance(value, Sequence) and not isinstance(value, str) and len(value) == count
    if not fits or not all(isinstance(one, int | float) and math.isfinite(one) for one in value or ()):
        raise _wrong(key, value, f"{count} numbers")
    return [float(one) for one in value or ()]


def choice_of(gold: Gold, key: str, accepted: Sequence[str]) -> str:
    """One of the accepted words."""
    value = gold.get(key)
    if value not in accepted:
        raise _wrong(key, value, ", ".join(accepted))
    return str(value)


def index_of(gold: Gold, key: str) -> int:
    """A whole number from 0 on."""
    value = gold.get(key)
    if not isinstance(value, int) or value < 0:
        raise _wrong(key, value, "a whole number from 0 on")
    return value
