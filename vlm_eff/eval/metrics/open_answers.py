"""Open questions of MMMU: numbers by value, words by being part of what the answer ends in."""

from __future__ import annotations

import re
from typing import Final

from vlm_eff.eval.metrics.gold import texts_of
from vlm_eff.eval.metrics.metric import Gold
from vlm_eff.eval.metrics.score import Score

# what an answer follows; "=" too, in the last sentence
_INTRODUCTIONS: Final = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_NUMBER: Final = re.compile(r"-?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?(?:e[+-]?[0-9]+)?|-?\.[0-9]+")


def open_answer(answer: str, gold: Gold) -> Score:
    """Right when a gold word is within a key part of the answer, or a gold number is among its numbers.

    gold: {"answers": [strings]}

    Key parts: of each sentence that has an introduction ("so", "is", "therefore", ...), the shortest text behind one;
    the whole answer where there is none. Numbers: without commas, rounded to two decimals.

    Source: the official code of MMMU.
    """
    parts = key_parts(answer)
    read: set[float | str] = {normalised(part) for part in parts}
    read |= {normalised(number) for part in parts for number in _NUMBER.findall(part)}
    right = any(_holds(one, reference) for one in read for reference in map(normalised, texts_of(gold)))
    return Score(float(right), " | ".join(parts))


def key_parts(answer: str) -> list[str]:
    """Where in an answer the answer is, in lower case."""
    text = answer.strip().strip(".").lower()
    sentences = [part for part in re.split(r"\.\s+|\n", text) if part.strip()]
    parts = []
    for place, sentence in enumerate(sentences):
        introductions = (*_INTRODUCTIONS, "=") if place == len(sentences) - 1 else _INTRODUCTIONS
        behind = [sentence.rsplit(word, 1)[1].strip() for word in introductions if word in sentence]
        shortest = min(behind, key=len, default="")
        if shortest.strip(":,.!?;'"):
            parts.append(shortest)
    return parts or [text]


def normalised(text: str) -> float | str:
    """A number, rounded to two decimals, or the text in lower case."""
    plain = text.strip().lower()
    try:
        value = round(float(plain.replace(",", "")), 2)
    except (ValueError, OverflowError):
        return plain
    return value if value - value == 0 else plain


def _holds(read: float | str, reference: float | str) -> bool:
    if isinstance(read, str) and isinstance(reference, str):
        # one character would be part of any word
        return bool(reference) and (f" {reference} " in f" {read} " if len(reference) == 1 else reference in read)
    return read == reference
