"""Multiple-choice questions: letters, options as text, and which option is the gold one."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from vlm_eff.eval.metrics.gold import LETTERS
from vlm_eff.eval.tasks.rows import Row

LETTER = "Answer with the option's letter from the given choices directly."
CHOICE_STYLES: Mapping[str, str] = {"letter": "{question}\n{options}\n" + LETTER, "plain": "{question}\n{options}"}
# "A. a dog", "(B) a cat" and "C) ..." hold the letter already
_LETTERED = re.compile(r"\(?([A-Z])[.):]\s*", re.IGNORECASE)


def options_text(options: Sequence[str]) -> str:
    """One line an option, as "A. a dog"."""
    return "\n".join(f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False))


def bare_options(row: Row, found: Sequence[Any]) -> list[str]:
    """Options without the letters that some files write before them.

    Raises:
        InputError: fewer than two options, or more than there are letters.
    """
    options = [str(option).strip() for option in found]
    if not 2 <= len(options) <= len(LETTERS):
        raise row.wrong(f"{len(options)} options", f"2 to {len(LETTERS)}")
    matches = [_LETTERED.match(option) for option in options]
    if all(match and match[1].upper() == letter for match, letter in zip(matches, LETTERS, strict=False)):
        return [_LETTERED.sub("", option, count=1) for option in options]
    return options


def by_letter(row: Row, answer: Any, options: Sequence[str]) -> dict[str, Any]:
    """Gold of multiple choice, where the file names the letter: {"answer": "B", "options": [...]}.

    Raises:
        InputError: no letter of these options.
    """
    letter = re.fullmatch(r"\(?([A-Z])[.)]?", str(answer).strip(), re.IGNORECASE)
    if letter is None or letter[1].upper() not in LETTERS[: len(options)]:
        raise row.wrong(f"the answer is {str(answer)[:60]!r}", f"a letter from A to {LETTERS[len(options) - 1]}")
    return _gold(LETTERS.index(letter[1].upper()), options)


def by_number(row: Row, answer: Any, options: Sequence[str]) -> dict[str, Any]:
    """As `by_letter`, where the file counts options from 0."""
    text = str(answer).strip()
    if not text.isdecimal() or int(text) >= len(options):
        raise row.wrong(f"the answer is {text[:60]!r}", f"a number from 0 to {len(options) - 1}")
    return _gold(int(text), options)


def by_text(row: Row, answer: Any, options: Sequence[str]) -> dict[str, Any]:
    """As `by_letter`, where the file repeats the right option; of two equal ones the first."""
    text = str(answer).strip()
    if text not in options:
        raise row.wrong(f"the answer is {text[:60]!r}", f"one of the {len(options)} options")
    return _gold(list(options).index(text), options)


def _gold(place: int, options: Sequence[str]) -> dict[str, Any]:
    return {"answer": LETTERS[place], "options": list(options)}
