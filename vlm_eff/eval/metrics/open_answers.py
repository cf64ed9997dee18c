"""Open questions of MMMU: numbers by value, words by being part of what the answer ends in."""

from __future__ import annotations

import math
import re
from typing import Final

from vlm_eff.eval.metrics.gold import texts_of
from vlm_eff.eval.metrics.metric import Gold
from vlm_eff.eval.metrics.score import Score

# what an answer follows; "=" too, in the last line
_INTRODUCTIONS: Final = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_TRIVIAL: Final = set(":,.!?;'")
# 1,000; 1.5e3; 1.5, .5 and 15. A look-behind keeps a long run of digits from being tried at each of them
_NUMBERS: Final = tuple(
    map(
        re.compile,
        (
            r"-?(?<!\w)\d{1,3}(?:,\d{3})+(?!\w)",
            r"-?(?<!\d)\d+(?:\.\d+)?e[+-]?\d+",
            r"-?(?:\.\d+|(?<!\d)\d+(?:\.\d+|\b))(?!e[+-]?\d)(?![,\d])",
        ),
    )
)


def open_answer(answer: str, gold: Gold, *, official: bool = False) -> Score:
    """Right when a gold text is within a key part of the answer, or a gold number is among its numbers.

    gold: {"answers": [strings]}

    Key parts: of each line that has an introduction ("so", "is", "therefore", ...), the shortest text behind one; the
    whole answer where there is none. Numbers: without commas, rounded to two decimals. A gold text of one character
    must be a word; official: it must have a blank on one side, which makes "a" right in "no answer".

    Source: the official code of MMMU.
    """
    parts = key_parts(answer)
    numbers = [number for part in parts for pattern in _NUMBERS for number in pattern.findall(part)]
    read = {normalised(text) for text in (*parts, *numbers)}
    right = any(_holds(one, normalised(text), official=official) for one in read for text in texts_of(gold))
    return Score(float(right), " | ".join(parts))


def key_parts(answer: str) -> list[str]:
    """Where in an answer the answer is, in lower case."""
    text = answer.strip().strip(".").lower()
    lines, parts = text.split("\n"), []
    for place, line in enumerate(lines):
        introductions = (*_INTRODUCTIONS, "=") if place == len(lines) - 1 else _INTRODUCTIONS
        behind = [line.rsplit(word, 1)[1].strip() for word in introductions if word in line]
        shortest = ""
        for part in behind:
            # an empty one gives way to the next, as officially
            shortest = part if not shortest or len(part) < len(shortest) else shortest
        if shortest and shortest not in _TRIVIAL:
            parts.append(shortest)
    return parts or [text]


def normalised(text: str) -> float | str:
    """A number, rounded to two decimals, or the text in lower case."""
    plain = text.strip().lower()
    try:
        value = float(plain.replace(",", ""))
    except ValueError:
        return plain
    return round(value, 2) if math.isfinite(value) else plain


def _holds(read: float | str, reference: float | str, *, official: bool) -> bool:
    if isinstance(read, float) or isinstance(reference, float):
        return read == reference
    if len(reference) != 1:
        return bool(reference) and reference in read
    if official:
        padded = f" {read} " if len(read) == 1 else read
        return f" {reference}" in padded or f"{reference} " in padded
    return reference in re.findall(r"\w+|[^\w\s]", read)
