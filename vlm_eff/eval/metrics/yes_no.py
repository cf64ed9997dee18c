"""Questions with yes or no for an answer: POPE and MME."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Final

from vlm_eff.core.errors import InputError, explain
from vlm_eff.eval.metrics.gold import yes_or_no
from vlm_eff.eval.metrics.metric import (
    Compat,
    Gold,
    Scored,
    accuracy,
    check_compat,
    mean,
    parts_of,
    register,
)
from vlm_eff.eval.metrics.score import Score
from vlm_eff.eval.metrics.vqa_text import without_marks

PERCEPTION: Final = (
    "existence",
    "count",
    "position",
    "color",
    "posters",
    "celebrity",
    "scene",
    "landmark",
    "artwork",
    "OCR",
)
COGNITION: Final = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")


def pope(answer: str, gold: Gold, *, item_id: str = "", compat: Compat | None = None) -> Score:
    """Is an object there, yes or no: POPE.

    gold:   {"answer": "yes" or "no"}
    groups: {"split": "random", "popular" or "adversarial"}, for the sums of each

    Of the first sentence: "yes" or "no"/"not" must be among the words, and not both; else it is unparsed, and wrong.

    compat="official": "No", "no" or "not" among the words up to the first dot is no and EVERYTHING ELSE is yes, also
    nonsense; its variant "+empty" takes an empty answer for yes as well. compat="lmms": the answer is exactly yes or
    no. compat="vlmevalkit": exactly one of the words yes and no in the whole answer.

    Source: Li et al. 2023, arXiv:2305.10355.
    """
    check_compat(compat, "official", "lmms", "vlmevalkit")
    right, answer = yes_or_no(gold), answer.strip()
    if compat == "official":
        words = set(answer.split(".")[0].replace(",", "").split(" "))
        read: str | None = "no" if words & {"No", "no", "not"} else "yes"
    elif compat == "lmms":
        read = answer.lower() if answer.lower() in ("yes", "no") else None
    elif compat == "vlmevalkit":
        read = _one_of(without_marks(answer.lower()).split(), no=("no",))
    else:
        read = _one_of(re.findall(r"\w+", answer.split(".")[0].lower()), no=("no", "not"))
    return _scored(read, right)


def _one_of(words: Sequence[str], no: tuple[str, ...]) -> str | None:
    yes_found, no_found = "yes" in words, not set(words).isdisjoint(no)
    if yes_found == no_found:
        return None
    return "yes" if yes_found else "no"


def _scored(read: str | None, right: str) -> Score:
    return Score(0.0, None, "unparsed") if read is None else Score(float(read == right), read)


def detection(items: Sequence[Scored]) -> dict[str, Any]:
    """Accuracy, precision, recall and F1 with yes as the positive answer, and the share of answers that are yes.

    What could not be read is no yes: it is missing from the recall and does not harm the precision. A ratio whose
    denominator is 0 is None.
    """
    positive = sum(yes_or_no(item.gold) == "yes" for item in items)
    said = sum(item.score.parsed == "yes" for item in items)
    hits = sum(item.score.parsed == "yes" and yes_or_no(item.gold) == "yes" for item in items)
    return {
        "accuracy": mean(item.score.value for item in items),
        "precision": hits / said if said else None,
        "recall": hits / positive if positive else None,
        "f1": 2 * hits / (said + positive) if said + positive else None,
        "yes_ratio": said / len(items),
        "n": len(items),
    }


def pope_total(items: Sequence[Scored]) -> dict[str, Any]:
    """What `accuracy` and `detection` say of all items, and `splits`: what `detection` says of each."""
    splits = {name: detection(some) for name, some in parts_of(items, "split").items()}
    return {**accuracy(items), **detection(items), "splits": splits}


def mme(answer: str, gold: Gold, *, item_id: str = "") -> Score:
    """Two questions an image, one with yes and one with no for an answer: MME.

    gold:    {"answer": "yes" or "no"}
    groups:  {"category": one of the 14 sub-tasks, such as "existence" or "OCR"}
    cluster: the image, of which there are two questions in a category

    Yes or no in lower case, or one of them within the first four characters, yes before no ("not" is no); else it is
    unparsed, and wrong.

    Source: Fu et al. 2023, arXiv:2306.13394; the official script, as in lmms-eval.
    """
    start = answer.strip().lower()[:4]
    read = next((word for word in ("yes", "no") if word in start), None)
    return _scored(read, yes_or_no(gold))


def mme_total(items: Sequence[Scored]) -> dict[str, Any]:
    """What `accuracy` says, and the points of MME.

    categories: by sub-task: accuracy (over questions), accuracy_plus (share of images with both questions right), score
                (100 x their sum, at most 200), pairs, and unpaired: images of which one question alone was asked, as
                under a limit. They count for accuracy only; without a pair, accuracy_plus and score are None
    perception, cognition: sums of the scores of their sub-tasks (at most 2000 and 800), None without any
    subtasks:   how many sub-tasks each of the two sums holds
    """
    categories = {name: _category(name, some) for name, some in parts_of(items, "category").items()}
    made: dict[str, Any] = {**accuracy(items), "categories": categories, "subtasks": {}}
    for name, members in (("perception", PERCEPTION), ("cognition", COGNITION)):
        lowered = {member.lower() for member in members}
        scores = [one["score"] for key, one in categories.items() if key.lower() in lowered]
        there = [score for score in scores if score is not None]
        made[name], made["subtasks"][name] = sum(there) if there else None, len(there)
    return made


def _category(name: str, items: Sequence[Scored]) -> dict[str, Any]:
    images: dict[str, list[float]] = defaultdict(list)
    for item in items:
        images[item.cluster].append(item.score.value)
    pairs = [values for values in images.values() if len(values) == 2]
    crowded = next((image for image, values in images.items() if len(values) > 2), None)
    if crowded is not None:
        asked = f"{len(images[crowded])} questions about image {crowded!r} in {name}"
        raise InputError(explain(asked, "two an image", "Let the reader name the image as the cluster of its items"))
    right = mean(item.score.value for item in items)
    both = mean(float(sum(values) == 2) for values in pairs) if pairs else None
    return {
        "accuracy": right,
        "accuracy_plus": both,
        "score": None if both is None else 100 * (right + both),
        "pairs": len(pairs),
        "unpaired": len(images) - len(pairs),
        "n": len(items),
    }


register(
    "pope",
    pope,
    total=pope_total,
    compat=dict.fromkeys(("official", "lmms", "vlmevalkit")),
    counting_empty=("official",),
)
register("mme", mme, total=mme_total)
