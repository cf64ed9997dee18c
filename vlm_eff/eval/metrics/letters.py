"""Which option an answer names: ways of reading a letter, each returning None where it finds none.

options: the texts of the options by their letters.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Final

from vlm_eff.eval.metrics.vqa_text import one_line, without_marks

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
)
GLUED_PREFIXES: Final = (
    *PREFIXES[:4],
    "The best option isThe correct option is",
    "Best answer:Best option:",
    *PREFIXES[8:],
)
_PHRASES: Final = (
    "the answer is",
    "answer is",
    "the correct answer is",
    "correct answer is",
    "the best answer is",
    "best answer is",
    "the correct option is",
    "correct option is",
    "the best option is",
    "best option is",
    "the choice is",
    "choice is",
    "the correct choice is",
    "correct choice is",
    "my answer is",
    "my choice is",
    "i choose",
    "i select",
    "i pick",
)
_TRIMMED: Final = (",", ".", "!", "?", ";", ":", "'")
# small letters must stand in brackets or before a mark or the end: "the answer is a" is A, "the answer is a dog" is not
_LEADS: Final = (
    r"\b(?i:{})\b[\s*\"':=]*(?:(?i:is)\b[\s*\"':=]*)?(?i:option\s+)?"
    r"(?:\(([A-Za-z])\)|((?!A\s+[a-z])[A-Z])(?![\w'])|([a-z])(?=[*\"']*(?:[.,:;)]|$)))"
)
_AROUND = " \t\n()[]{}<>.:,;*_'\"`"


def careful(answer: str, options: Options) -> str | None:
    """Read the one option that the answer names, by letter or by text, or nothing where it could mean several.

    In this order: the answer is a letter; "answer is X" or "option X", the last one; it starts with X. X) X: or (X);
    the only (X); the only capital that stands alone, where "A" before a word in lower case is an article and "I" is a
    person; it is the text of an option; it holds the text of one option alone. Small letters count where they cannot
    be words.
    """
    answer = " ".join(answer.split())
    found = _by_letter(answer, options)
    return found if found is not None else by_text(answer, options)


def _by_letter(answer: str, options: Options) -> str | None:
    bare = answer.strip(_AROUND).upper()
    if bare in options:
        return bare
    # what "answer" leads to goes before what "option" does, which may be one that is ruled out
    for lead in ("answer", "option|choice"):
        named = [letter for hit in re.findall(_LEADS.format(lead), answer) for letter in "".join(hit).upper()]
        if named := [letter for letter in named if letter in options]:
            return named[-1]
    start = re.match(r"[*\"'\[]*(?:\(([A-Za-z])\)|([A-Za-z])\s?[.):\],])", answer)
    if start and (letter := (start[1] or start[2]).upper()) in options:
        return letter
    for pattern in (r"\(([A-Za-z])\)", r"(?<![\w'])(?!A\s+(?!and\b|or\b)[a-z])([A-HJ-Z])(?![\w'])"):
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

    Forms, best first: at the start, at the end, behind "answer is" and its like, (X), X. X: X) and X before a blank,
    even at the end of a word; any X at last. An article at the start is read as an option, and of two letters in prose
    the later one. Its phrases in other languages than English are not read.
    """
    text = _trimmed(answer, (*_TRIMMED, '"')).strip()
    if text[:1] in options and not text[1:2].isalpha():
        return text[:1]
    if text[-1:] in options and not text[-2:-1].isalpha():
        return text[-1:]
    padded, lowered = f" {text} ", f" {text} ".lower()
    behind: dict[str, int] = {}
    for phrase in _PHRASES:
        if (place := lowered.find(phrase)) >= 0:
            for letter in options:
                behind[letter] = max(behind.get(letter, -1), padded.find(letter, place + len(phrase)))
    forms = ("({})", "{}.", "{}:", "{})", "{} ", "{}")
    ranks = [behind, *({letter: padded.rfind(form.format(letter)) for letter in options} for form in forms)]
    return next((found for places in ranks if (found := _latest(places))), None)


def first_capital(answer: str, options: Options, prefixes: tuple[str, ...] = PREFIXES) -> str | None:
    """Read as the Video-MME script: known prefixes go, then the FIRST capital that is an option's letter, even within a
    word, counts."""
    for prefix in prefixes:
        answer = answer.replace(prefix, "")
    found = re.search(f"[{''.join(options)}]", answer)
    return found[0] if found else None


def last_form(answer: str, options: Options, *, first_dotted: bool = False) -> str | None:
    """Read as MMMU: (X), else "X ", else X., else, in more than five words, an option's text; the LAST one counts.

    A letter before a blank may end a word, where no other does; of several, the last word that is a letter counts.
    first_dotted: of several X. the first option counts instead of the last one
    """
    text = f" {_trimmed(answer, _TRIMMED)} "
    bracketed, spaced, word, dotted = (
        {letter: text.rfind(form.format(letter)) for letter in options} for form in ("({})", "{} ", " {} ", "{}.")
    )
    if found := _latest(bracketed):
        return found
    ending = [letter for letter, place in spaced.items() if place >= 0]
    if ending:
        return _latest(word) or ending[0]
    if found := _latest(dotted):
        return next(letter for letter, place in dotted.items() if place >= 0) if first_dotted else found
    if len(text.split()) > 5:
        return _latest({letter: text.lower().rfind(option.lower()) for letter, option in options.items() if option})
    return None


def _trimmed(answer: str, marks: tuple[str, ...]) -> str:
    # one mark after the other, each once, as the codes do
    for mark in marks:
        answer = answer.strip(mark)
    return answer


def _latest(places: Mapping[str, int]) -> str | None:
    last = max(places, key=lambda letter: places[letter], default=None)
    return last if last is not None and places[last] >= 0 else None


def leading_capital(answer: str, options: Options) -> str | None:
    """Read as ScienceQA: the answer is the letter, large or small, or starts with the capital and a dot."""
    if answer.upper() in options:
        return answer.upper()
    return answer[0] if answer[1:2] == "." and answer[0] in options else None


def first_character(answer: str, options: Options) -> str | None:
    """Read as SEED: the first character, large or small."""
    mark = answer[:1].upper()
    return mark if mark in options else None


def single_word(answer: str, options: Options) -> str | None:
    """Read as MMBench without a judge: one letter alone stands alone, and within the last four words; else one option's
    text alone is in an answer at most twice as long as all options."""
    words = re.sub(r"[.()\[\],:;!*#{}]", " ", answer).split()
    letters = [letter for letter in options if letter in words]
    if len(letters) == 1 and words.index(letters[0]) > len(words) - 5:
        return letters[0]
    if len(answer) > 2 * sum(map(len, options.values())):
        return None
    held = [letter for letter, text in options.items() if text and text.lower() in answer.lower()]
    return held[0] if len(held) == 1 else None


def lone_letter(answer: str, options: Options) -> str | None:
    """Read as lmms-eval reads MVBench: "X. text", or the first of a to e, large or small, that stands alone: articles
    too."""
    text = answer if re.match(r"[A-Ea-e]\.\s*.+$", answer) else without_marks(one_line(answer))
    found = re.search(r"\b([a-e])\b", text.lower())
    return found[0].upper() if found else None
