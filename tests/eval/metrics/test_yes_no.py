"""POPE and MME: what is read, and what is made of it."""

from __future__ import annotations

import pytest

from vlm_eff.core.errors import InputError
from vlm_eff.eval.metrics import METRICS, Scored, yes_no
from vlm_eff.eval.metrics.metric import Compat
from vlm_eff.eval.metrics.yes_no import mme, pope

YES = {"answer": "yes"}
NO = {"answer": "No"}


@pytest.mark.parametrize(
    ("answer", "ours", "official", "lmms", "kit"),
    [
        ("yes", "yes", "yes", "yes", "yes"),
        ("No", "no", "no", "no", "no"),
        ("Yes.", "yes", "yes", None, "yes"),
        ("No, there is a cat.", "no", "no", None, "no"),
        ("There is not a dog.", "no", "no", None, None),
        ("NO", "no", "yes", "no", "no"),
        ("A dog", None, "yes", None, None),
        ("#!", None, "yes", None, None),
        ("yes and no", None, "no", None, None),
        ("Yes. It is not small, no.", "yes", "yes", None, None),
        ("yes-no", None, "yes", None, None),
        ("nope", None, "yes", None, None),
    ],
)
def test_what_pope_reads(answer: str, ours: str | None, official: str, lmms: str | None, kit: str | None) -> None:
    codes: dict[Compat | None, str | None] = {None: ours, "official": official, "lmms": lmms, "vlmevalkit": kit}
    for compat, read in codes.items():
        score = pope(answer, YES, compat=compat)
        assert score.parsed == read, compat
        assert score.value == (read == "yes") and score.status == ("unparsed" if read is None else "ok")
        assert pope(answer, NO, compat=compat).value == (read == "no")


def items_of(name: str, rows: list[tuple[str, str, str]]) -> list[Scored]:
    """Of (answer, gold, split)."""
    chosen = METRICS.get(name)
    return [
        Scored(str(n), chosen.score(answer, {"answer": gold}, item_id=str(n)), {"answer": gold}, "", {"split": split})
        for n, (answer, gold, split) in enumerate(rows)
    ]


ROWS = [
    ("yes", "yes", "random"),
    ("yes", "no", "random"),
    ("no", "yes", "random"),
    ("no", "no", "random"),
    ("yes", "yes", "popular"),
    ("who knows", "yes", "popular"),
    ("", "no", "popular"),
    ("no", "no", "popular"),
]


def test_sums_of_pope() -> None:
    sums = METRICS.get("pope").aggregate(items_of("pope", ROWS))
    assert sums["accuracy"] == 0.5 and sums["n"] == 8
    assert sums["precision"] == pytest.approx(2 / 3) and sums["recall"] == 0.5
    assert sums["f1"] == pytest.approx(2 * (2 / 3) * 0.5 / (2 / 3 + 0.5))
    assert (sums["unparsed_rate"], sums["empty_rate"]) == (1 / 8, 1 / 8)
    popular = sums["splits"]["popular"]
    assert (popular["precision"], popular["recall"], popular["accuracy"], popular["n"]) == (1, 0.5, 0.5, 4)
    # of what was said, not of what is true
    assert (sums["yes_ratio"], popular["yes_ratio"]) == (3 / 8, 1 / 4)


def test_a_model_that_never_says_yes() -> None:
    sums = METRICS.get("pope").aggregate(items_of("pope", [("no", "yes", "random"), ("no", "no", "random")]))
    assert (sums["precision"], sums["recall"], sums["f1"], sums["yes_ratio"]) == (None, 0, 0, 0)


def test_yes_ratio_of_the_truth_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = yes_no.detection
    monkeypatch.setattr(yes_no, "detection", lambda items: honest(items) | {"yes_ratio": 0.5})
    with pytest.raises(AssertionError):
        test_sums_of_pope()


@pytest.mark.parametrize(
    ("answer", "read"),
    [
        ("Yes", "yes"),
        ("no", "no"),
        ("Yes, it is.", "yes"),
        ("Not really", "no"),
        ("I know", None),
        ("Oh yes", None),
        ("(yes)", "yes"),
        ("A yes", None),
        ("Noyes", "no"),
        ("yesno", "yes"),
    ],
)
def test_what_mme_reads(answer: str, read: str | None) -> None:
    assert mme(answer, YES).parsed == read
    assert mme(answer, YES).value == (read == "yes")


def mme_items(rows: list[tuple[str, str, bool]]) -> list[Scored]:
    """Of (category, image, right)."""
    chosen = METRICS.get("mme")
    return [
        Scored(str(n), chosen.score("yes" if right else "no", YES, item_id=""), YES, image, {"category": category})
        for n, (category, image, right) in enumerate(rows)
    ]


def test_points_of_mme() -> None:
    rows = [("existence", "1", True), ("existence", "1", True), ("existence", "2", True), ("existence", "2", False)]
    # an image may be asked about in several sub-tasks
    rows += [("OCR", "1", True), ("OCR", "1", True), ("code_reasoning", "1", False), ("code_reasoning", "1", False)]
    sums = METRICS.get("mme").aggregate(mme_items(rows))
    existence = sums["categories"]["existence"]
    assert (existence["accuracy"], existence["accuracy_plus"], existence["score"]) == (0.75, 0.5, 125)
    assert (sums["perception"], sums["cognition"]) == (325, 0)
    assert sums["subtasks"] == {"perception": 2, "cognition": 1}


def test_half_an_image_counts_for_accuracy_alone() -> None:
    rows = [("count", "1", True), ("count", "1", True), ("count", "2", False), ("scene", "3", True)]
    sums = METRICS.get("mme").aggregate(mme_items(rows))
    count, scene = sums["categories"]["count"], sums["categories"]["scene"]
    assert (count["accuracy"], count["accuracy_plus"], count["unpaired"]) == (pytest.approx(2 / 3), 1, 1)
    assert (scene["accuracy"], scene["accuracy_plus"], scene["score"]) == (1, None, None)
    assert sums["perception"] == count["score"] and sums["subtasks"]["perception"] == 1
    assert sums["cognition"] is None
    with pytest.raises(InputError, match="two an image"):
        METRICS.get("mme").aggregate(mme_items([("count", "1", True)] * 3))
