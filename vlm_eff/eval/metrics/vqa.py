"""VQA accuracy: how many people gave this answer."""

from __future__ import annotations

from collections.abc import Sequence

from vlm_eff.core.errors import InputError, explain
from vlm_eff.eval.metrics.gold import texts_of
from vlm_eff.eval.metrics.metric import Compat, Gold, check_compat, mean, register
from vlm_eff.eval.metrics.score import Score
from vlm_eff.eval.metrics.vqa_text import normalise_evalai, normalise_vqa, one_line, plain_words, without_marks

# a person's answer counts in full when three others gave it
_ENOUGH = 3


def vqa(answer: str, gold: Gold, *, item_id: str = "", compat: Compat | None = None) -> Score:
    """VQA accuracy with the official normalisation: VQAv2, and our default for sets of that form.

    gold:   {"answers": [one string a person, 10 in the official sets]}; "confidences": [one string each], optional
    groups: {"answer_type": "yes/no", "number" or "other", "question_type": ...}

    Each reference is left out by its place, the answer is worth min(1, matches / 3) of the others, and the mean counts.
    Where all references are the same string, nothing is normalised but line ends and blanks: case and marks count, as
    officially.

    compat="lmms" always normalises, as lmms-eval does. compat="official" leaves out every reference that EQUALS the one
    left out, with its confidence where given: the official code compares records, so for sets whose records carry no
    answer_id (VizWiz) agreeing people vanish together and lower the score; with ids it is the default.

    Source: Antol et al. 2015, arXiv:1505.00468; the official VQA evaluation.

    Raises:
        InputError: fewer than two references; among the others of one there is nobody to agree with.
    """
    check_compat(compat, "lmms", "official")
    raw = [one_line(reference) for reference in texts_of(gold)]
    read, references = one_line(answer), raw
    if compat == "lmms":
        read, *references = (plain_words(without_marks(text)) for text in (read, *raw))
    elif len(set(raw)) > 1:
        read, *references = (normalise_vqa(text) for text in (read, *raw))
    return Score(agreement(read, references, _records(gold, references) if compat == "official" else None), read)


def vqa_evalai(answer: str, gold: Gold, *, item_id: str = "") -> Score:
    """VQA accuracy with the EvalAI normalisation, always applied: TextVQA, OK-VQA and VizWiz.

    gold:   {"answers": [one string a person]}
    groups: as for `vqa`

    Source: Singh et al. 2019, arXiv:1904.08920; the EvalAI answer processor, as in lmms-eval.

    Raises:
        InputError: fewer than two references.
    """
    read = normalise_evalai(answer)
    return Score(agreement(read, [normalise_evalai(reference) for reference in texts_of(gold)]), read)


def agreement(answer: str, references: Sequence[str], records: Sequence[object] | None = None) -> float:
    """Leave each reference out in turn, and take the mean of min(1, matches among the others / 3).

    records: where given, everything that equals the one left out goes with it, instead of that one alone
    """
    if len(references) < 2:
        raise InputError(
            explain("one reference answer", "two or more, of which each is left out once", "Use the metric exact_match")
        )
    matches = [reference == answer for reference in references]
    marks = records or range(len(references))
    return mean(
        min(1.0, sum(match for match, mark in zip(matches, marks, strict=True) if mark != left_out) / _ENOUGH)
        for left_out in marks
    )


def _records(gold: Gold, references: Sequence[str]) -> list[object]:
    confidences = texts_of(gold, "confidences") if "confidences" in gold else [""] * len(references)
    if len(confidences) != len(references):
        raise InputError(
            explain(f"{len(confidences)} confidences of {len(references)} answers", "one each", "Correct the reader")
        )
    return list(zip(references, confidences, strict=True))


register("vqa", vqa, compat={"lmms": None, "official": None})
register("vqa_evalai", vqa_evalai)
