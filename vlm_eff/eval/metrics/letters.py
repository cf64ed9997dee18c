"""Which option an answer names: ways of reading a letter, each returning None where it finds none.

options: the texts of the options by their letters.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Final

Options = Mapping[str, str]
Reading = Callable[[str, Options], str | None]

# the prefixes of the Video-MME script; its list lacks two commas, which glues those on the right together
PREFIXES: Final = (
    "The best answer is",
    "The correct answer is",
    "The answer is",
    "The answer",
    "The best option is",
    "The correct option is",
    "Best answer:",
    "Best option:",
    "Answer:",
    "Option:",
    "The correct answer",
    "The correct option",
)
GLUED_PREFIXES: Final = (
    *PREFIXES[:4],
    "The best option isThe correct option is",
    "Best answer:Best option:",
    *PREFIXES[8:],
)
# a longer answer without a letter is prose
_SHORT = 10
_AROUND = " \t\n()[]{}<>.:,;*_'\"`"


def careful(answer: str, options: Options) -> str | None:
    """Read the one option that the answer names, by letter or by text, and nothing where it could mean several.

    In this order: the answer is a letter; "answer is X" or "option X", the last one; it starts with X. X) X: or (X);
    the only (X); the only capital that stands alone, where "A" before a word in lower case is an article and "I" is a
    person; it is the text of an option; it holds the text of one option alone. Small letters count where they cannot
    be words.
    """
    found = _by_letter(answer, options)
    return found if found is not None else by_text(answer, options)


def _by_letter(answer: str, options: Options) -> str | None:
    bare = answer.strip(_AROUND).upper()
    if bare in options:
        return bare
    phrases = re.findall(
        r"\b(?i:answer|option|choice)\b(?i:\s+is\b)?\s*[:=]?\s*(?i:option\s+)?[*\"']*"
        r"(?:\(([A-Za-z])\)|([A-Z])(?![\w'])|([a-z])(?=\s*[*\"']*(?:[.,:;)]|$)))",
        answer,
    )
    named = [letter for hit in phrases for letter in "".join(hit).upper() if letter in options]
    if named:
        return named[-1]
    start = re.match(r"[*\"'\[]*(?:\(([A-Za-z])\)|([A-Za-z])\s?[.):\],])", answer)
    if start and (letter := (start[1] or start[2]).upper()) in options:
        return letter
    for pattern in (r"\(([A-Za-z])\)", r"(?<![\w'])(?!A\s+[a-z])([A-HJ-Z])(?![\w'])"):
        letters = {letter.upper() for letter in re.findall(pattern, answer)} & set(options)
        if letters:
            return letters.pop() if len(letters) == 1 else None
    return None


def by_text(answer: str, options: Options) -> str | None:
    """Read the option whose text the answer is, or holds as words; the longer of two where one is part of it."""
    read = _plain(answer)
    texts = {letter: _plain(text) for letter, text in options.items()}
    same = [letter for letter, text in texts.items() if text and text == read]
    if same:
        return same[0] if len(same) == 1 else None
    held = {letter: text for letter, text in texts.items() if text and f" {text} " in f" {read} "}
    widest = [
        letter for letter, text in held.items() if not any(text in other and text != other for other in held.values())
    ]
    return widest[0] if len(widest) == 1 else None


def _plain(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


def ranked(answer: str, options: Options) -> str | None:
    """Read as lmms-eval's robust extraction: by the form of the letter first, then the later one; capitals alone.

    Forms, best first: at the start, at the end, "answer is X", (X), X. X: X) and X before a blank. An article at the
    start is read as an option, and of two letters in prose the later one.
    """
    letter = f"([{''.join(options)}])"
    forms = (
        rf"^\(?{letter}(?=[\s.,:)]|$)",
        rf"(?<!\w){letter}\)?\.?$",
        rf"(?i:answer|option|choice)(?i:\s+is)?:?\s+\(?{letter}(?!\w)",
        rf"\({letter}\)",
        rf"(?<!\w){letter}\.",
        rf"(?<!\w){letter}:",
        rf"(?<!\w){letter}\)",
        rf"(?<!\w){letter}\s",
    )
    for form in forms:
        if found := re.findall(form, answer):
            return str(found[-1])
    return None


def first_capital(answer: str, options: Options, prefixes: tuple[str, ...] = PREFIXES) -> str | None:
    """Read as the Video-MME script: known prefixes go, then the FIRST capital that is an option's letter, even within a
    word, counts."""
    for prefix in prefixes:
        answer = answer.replace(prefix, "")
    found = re.search(f"[{''.join(options)}]", answer)
    return found[0] if found else None


def last_form(answer: str, options: Options) -> str | None:
    """Read as MMMU: (X), else "X ", else X., else, in more than five words, an option's text; the LAST one counts."""
    for mark in (",", ".", "!", "?", ";", ":", "'"):
        answer = answer.strip(mark)
    padded = f" {answer} "
    for form in ("({})", "{} ", "{}."):
        if found := _latest(padded, {letter: form.format(letter) for letter in options}):
            return found
    if len(padded.split()) > 5:
        return _latest(padded.lower(), {letter: text.lower() for letter, text in options.items() if text})
    return None


def _latest(text: str, wanted: Mapping[str, str]) -> str | None:
    places = {letter: text.rfind(one) for letter, one in wanted.items()}
    found = {letter: place for letter, place in places.items() if place >= 0}
    return max(found, key=lambda letter: found[letter]) if found else None


def leading_capital(answer: str, options: Options) -> str | None:
    """Read as ScienceQA: the answer is the letter, or starts with the capital and a dot."""
    if answer in options:
        return answer
    return answer[0] if answer[1:2] == "." and answer[0] in options else None


def first_character(answer: str, options: Options) -> str | None:
    """Read as SEED: the first character, large or small."""
    mark = answer[:1].upper()
    return mark if mark in options else None


def single_word(answer: str, options: Options) -> str | None:
    """Read as MMBench without a judge: exactly one letter stands alone, where "A" in more than three words may be an
    article; with no letter, exactly one option's text is in an answer not over twice as long as all options."""
    words = re.sub(r"[.()\[\],:;!*#{}]", " ", answer).split()
    letters = [letter for letter in options if letter in words]
    if len(letters) == 1:
        return None if letters == ["A"] and len(words) > 3 else letters[0]
    if letters or len(answer) > 2 * sum(map(len, options.values())):
        return None
    held = [letter for letter, text in options.items() if text and text.lower() in answer.lower()]
    return held[0] if len(held) == 1 else None
