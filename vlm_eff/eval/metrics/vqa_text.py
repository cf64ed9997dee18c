"""Texts as VQA accuracy compares them: marks, digits, articles and contractions made alike.

Follows the published behaviour of the official VQA evaluation and of the EvalAI answer processor, oddities included,
because every VQA number in the literature carries them.
"""

from __future__ import annotations

import re
from typing import Final

_MARKS: Final = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER: Final = re.compile(r"\d,\d")
_DOT: Final = re.compile(r"\.(?!\d)")
# the official call passes a flag (32) where the number of replacements belongs
_MOST_DOTS: Final = 32
_NUMBERS: Final = {
    "none": "0",
    "zero": "0",
    "one": "1",
    "two": "2",
    "three": "3",
    "four": "4",
    "five": "5",
    "six": "6",
    "seven": "7",
    "eight": "8",
    "nine": "9",
    "ten": "10",
}
_ARTICLES: Final = {"a", "an", "the"}
_CONTRACTED: Final = (
    "ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't "
    "he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't "
    "must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've "
    "somebody'd somebody'd've somebody'll somebody's someone'd someone'd've someone'll someone's something'd "
    "something'd've something'll that's there'd there'd've there're there's they'd they'd've they'll they're "
    "they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's where'd where's where've "
    "who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll "
    "y'all'd've you'd you'd've you'll you're you've "
)


def _one_apostrophe_less() -> dict[str, str]:
    """Each contraction with one of its apostrophes missing, to itself.

    Not in the table, as officially: I'm, I've, I'd've (their capitals never match a lower-cased word), and what is
    another word without the apostrophe (he'll, we'll, she'd, we're).
    """
    missing = {}
    for word in _CONTRACTED.split():
        for place, mark in enumerate(word):
            if mark == "'":
                missing[word[:place] + word[place + 1 :]] = word
    return missing


_CONTRACTIONS: Final = _one_apostrophe_less()


def one_line(text: str) -> str:
    """Step 1: line ends and tabs become spaces; blanks at the ends go."""
    return text.replace("\n", " ").replace("\t", " ").strip()


def without_marks(text: str) -> str:
    """Steps 2 and 3: a mark becomes a space, or nothing where it stands beside a space anywhere in the text, or where
    any comma stands between digits; then dots go, but for those before a digit."""
    comma_in_number = _COMMA_IN_NUMBER.search(text) is not None
    made = text
    for mark in _MARKS:
        beside_space = f"{mark} " in text or f" {mark}" in text
        made = made.replace(mark, "" if beside_space or comma_in_number else " ")
    return _DOT.sub("", made, count=_MOST_DOTS)


def plain_words(text: str) -> str:
    """Step 4: lower case; number words up to ten become digits, articles go, contractions get their apostrophe."""
    words = [_NUMBERS.get(word, word) for word in text.lower().split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def normalise_vqa(text: str) -> str:
    """Pipeline A: steps 1 to 4, as the official VQAv2 evaluation."""
    return plain_words(without_marks(one_line(text)))


def normalise_evalai(text: str) -> str:
    """Pipeline B: the EvalAI processor of TextVQA, OK-VQA and VizWiz, which parts 's from its word first."""
    lowered = text.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    return normalise_vqa(lowered)
