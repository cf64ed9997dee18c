"""Exact match, GQA, ANLS and relaxed accuracy, case by case."""

from __future__ import annotations

import random

import pytest

from vlm_eff.eval.metrics import short_answers
from vlm_eff.eval.metrics.short_answers import anls, exact_match, gqa, levenshtein, relaxed_accuracy


def test_exact_match_is_exact() -> None:
    assert exact_match("red\n", {"answer": "red"}).value == 1
    assert exact_match("Red", {"answer": "red"}).value == 0
    assert exact_match("red.", {"answer": "red"}).value == 0


def test_gqa() -> None:
    gold = {"answer": "yes"}
    for answer in ("yes.", "Yes", " yes ", '"yes"'):
        assert gqa(answer, gold).value == 1
    assert gqa("yes it is", gold).value == 0
    assert gqa("T-shirt", {"answer": "t shirt"}).value == 0
    assert gqa("...", gold).status == "unparsed"
    # the other script takes dots at the end away, and no more
    assert gqa("Yes..", gold, compat="official").value == 1
    assert gqa('"yes"', gold, compat="official").value == 0


@pytest.mark.parametrize(
    ("first", "second", "distance"),
    [("", "", 0), ("", "abc", 3), ("kitten", "sitting", 3), ("flaw", "lawn", 2), ("abc", "abc", 0), ("ab", "ba", 2)],
)
def test_levenshtein(first: str, second: str, distance: int) -> None:
    assert levenshtein(first, second) == levenshtein(second, first) == distance


def test_levenshtein_keeps_the_triangle() -> None:
    dice = random.Random(0)
    texts = ["".join(dice.choices("abc", k=dice.randint(0, 6))) for _ in range(12)]
    for one in texts:
        for two in texts:
            assert (levenshtein(one, two) == 0) == (one == two)
            for three in texts:
                assert levenshtein(one, three) <= levenshtein(one, two) + levenshtein(two, three)


def test_anls() -> None:
    assert anls("Invoice  42", {"answers": ["invoice 42"]}).value == 1
    assert anls("invoice 43", {"answers": ["x", "Invoice 42"]}).value == pytest.approx(0.9)
    assert anls("abcd", {"answers": ["wxyz"]}).value == 0
    # one character is all or nothing
    assert anls("7", {"answers": ["8"]}).value == 0
    assert anls("", {"answers": [""]}).value == 1


def test_anls_at_the_limit() -> None:
    half = {"answers": ["abcd"]}
    assert anls("abxy", half).value == anls("abxy", half, compat="lmms").value == 0.5
    assert anls("abxy", half, compat="official").value == 0


def test_blanks_do_not_make_a_wrong_answer_nearly_right() -> None:
    gold = {"answers": ["dog"]}
    padded = "x" + " " * 300 + "y"
    assert anls(padded, gold).value == anls("cat" + " " * 300, gold).value == 0
    # the common code measures the raw lengths
    assert anls(padded, gold, compat="lmms").value == pytest.approx(1 - 3 / 302)


def test_raw_lengths_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = short_answers._similarity
    monkeypatch.setattr(short_answers, "_similarity", lambda a, b, length, strict: honest(a, b, 302, strict=strict))
    with pytest.raises(AssertionError):
        test_blanks_do_not_make_a_wrong_answer_nearly_right()


@pytest.mark.parametrize(
    ("answer", "gold", "right"),
    [
        ("10.5", "10", True),
        ("10.51", "10", False),
        ("-9.5", "-10", True),
        ("12%", "12", False),
        ("12%", "0.12", True),
        ("0.0", "0", False),
        ("0", "0", True),
        ("1,000", "1000", False),
        ("$5", "5", False),
        (" 5", "5", True),
        ("nan", "5", False),
        ("inf", "5", False),
        ("nan", "nan", False),
        ("inf", "inf", False),
        ("Yes", "yes", True),
        ("%", "5", False),
        ("1e3", "1000", True),
    ],
)
def test_relaxed_accuracy(answer: str, gold: str, right: bool) -> None:
    assert relaxed_accuracy(answer, {"answer": gold}).value == right
