"""Short answers against one gold answer or the best of several: equal, near as text, near as a number."""

from __future__ import annotations

import math
import string

from vlm_eff.eval.metrics.gold import text_of, texts_of
from vlm_eff.eval.metrics.metric import Compat, Gold, check_compat, register
from vlm_eff.eval.metrics.score import Score

_NO_MARKS = str.maketrans("", "", string.punctuation)
_ANLS_LIMIT = 0.5
_RELAXED = 0.05


def exact_match(answer: str, gold: Gold, *, item_id: str = "") -> Score:
    """The answer is the gold answer, character by character but for blanks at the ends: our reference sets.

    gold: {"answer": string}
    """
    return Score(float(answer.strip() == text_of(gold).strip()), answer.strip())


def gqa(answer: str, gold: Gold, *, item_id: str = "", compat: Compat | None = None) -> Score:
    """Exact match in lower case and without ASCII punctuation: GQA.

    gold: {"answer": string}

    compat="official" is the script most GQA numbers of LLaVA models come from: lower case and no dots at the end, all
    else counts.

    Source: Hudson and Manning 2019, arXiv:1902.09506; lmms-eval. Consistency, validity, plausibility and distribution
    of the official code need its scene graphs and are not computed.
    """
    check_compat(compat, "official")
    if compat == "official":
        read, right = (text.strip().rstrip(".").lower() for text in (answer, text_of(gold)))
    else:
        read, right = (" ".join(text.lower().translate(_NO_MARKS).split()) for text in (answer, text_of(gold)))
    return Score(float(read == right), read) if read else Score(0.0, None, "unparsed")


def anls(answer: str, gold: Gold, *, item_id: str = "", compat: Compat | None = None) -> Score:
    """Average normalised Levenshtein similarity with the best reference: DocVQA, InfoVQA.

    gold: {"answers": [strings]}

    Both sides in lower case with runs of blanks as one space; distance / length of the longer one = NL; worth 1 - NL,
    or 0 where that is under 0.5. Lengths are those of the texts compared: the common code takes the raw ones, so that
    a wrong answer followed by blanks is nearly right.

    compat="lmms" takes the raw lengths; its variant "+empty" lets an empty answer match an empty reference.
    compat="official" follows the paper: NL of exactly 0.5 is worth 0.

    Source: Biten et al. 2019, arXiv:1905.13648.
    """
    check_compat(compat, "lmms", "official")
    read = " ".join(answer.lower().split())
    best = 0.0
    for raw in texts_of(gold):
        reference = " ".join(raw.lower().split())
        pair = (raw, answer) if compat == "lmms" else (reference, read)
        best = max(best, _similarity(reference, read, max(map(len, pair)), strict=compat == "official"))
    return Score(best, read)


def _similarity(reference: str, answer: str, length: int, *, strict: bool) -> float:
    if not length:
        return 1.0
    # the distance is at least the difference in length: long answers need no table
    if abs(len(reference) - len(answer)) / length > 1 - _ANLS_LIMIT:
        return 0.0
    far = levenshtein(reference, answer) / length
    return 0.0 if far > 1 - _ANLS_LIMIT or (strict and far == 1 - _ANLS_LIMIT) else 1 - far


def levenshtein(first: str, second: str) -> int:
    """Fewest insertions, deletions and replacements of a character that turn one text into the other."""
    if len(first) < len(second):
        first, second = second, first
    row = list(range(len(second) + 1))
    for place, mark in enumerate(first, start=1):
        above, row = row, [place]
        for column, other in enumerate(second):
            row.append(min(above[column + 1] + 1, row[column] + 1, above[column] + (mark != other)))
    return row[-1]


def relaxed_accuracy(answer: str, gold: Gold, *, item_id: str = "") -> Score:
    """Within 5 % of a number, equal in lower case else: ChartQA.

    gold: {"answer": string}

    "12%" reads as 0.12; "1,000" and "$5" do not read as numbers; a gold answer of 0 is compared as text.

    Source: Masry et al. 2022, arXiv:2203.10244, after Methani et al. 2020, arXiv:1909.00997; lmms-eval.
    """
    said, target = answer.strip(), text_of(gold).strip()
    read, right = _number(said), _number(target)
    if read is not None and right:
        return Score(float(abs(read - right) / abs(right) <= _RELAXED), said)
    return Score(float(said.lower() == target.lower()), said)


def _number(text: str) -> float | None:
    try:
        value = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else math.nan


register("exact_match", exact_match)
register("gqa", gqa, compat={"official": None})
register("anls", anls, compat={"lmms": None, "official": None}, counting_empty=("lmms",))
register("relaxed_accuracy", relaxed_accuracy)
