"""VQA accuracy: the published vectors of both normalisations, and how people are counted."""

from __future__ import annotations

import random

import pytest

from vlm_eff.core.errors import ConfigError, InputError
from vlm_eff.eval.metrics import METRICS
from vlm_eff.eval.metrics import vqa as rules
from vlm_eff.eval.metrics.vqa import agreement, vqa, vqa_evalai
from vlm_eff.eval.metrics.vqa_text import normalise_evalai, normalise_vqa

# input, EvalAI, official VQAv2
VECTORS = [
    ("The Dog.", "dog", "dog"),
    ("a", "", ""),
    ("None", "0", "0"),
    ("1,000", "1000", "1000"),
    ("1,000.5", "1000.5", "1000.5"),
    ("3.14.", "3.14", "3.14"),
    ("U.S.A.", "usa", "usa"),
    ("red/blue", "red blue", "red blue"),
    ("ice - cream", "ice cream", "ice cream"),
    ("t-shirt", "t shirt", "t shirt"),
    ("what's", "what 's", "what's"),
    ("a,b", "ab", "b"),
    ("1,2 and a-b", "12 and b", "12 and ab"),
    ("no one", "no 1", "no 1"),
    ("$5.00", "$5.00", "$5.00"),
    ("5%", "5%", "5%"),
    ("12:30", "12:30", "12:30"),
    ("'hi'", "'hi'", "'hi'"),
    ("Im", "im", "im"),
    ("dont", "don't", "don't"),
    ("couldntve couldnt've couldn'tve", "couldntve couldn't've couldn't've", "couldntve couldn't've couldn't've"),
    ("eleven", "eleven", "eleven"),
    ("two\tdogs\nrun ", "2 dogs run", "2 dogs run"),
]


@pytest.mark.parametrize(("text", "evalai", "official"), VECTORS)
def test_published_vectors(text: str, evalai: str, official: str) -> None:
    assert (normalise_evalai(text), normalise_vqa(text)) == (evalai, official)


def test_normalised_twice_is_normalised_once_officially() -> None:
    dice = random.Random(0)
    words = [*"-,.'/ $5aAé", " a", "the ", "dont", "one", "thats", "1,000", "\n", "what's"]
    for _ in range(2000):
        once = normalise_vqa("".join(dice.choices(words, k=dice.randint(0, 8))))
        assert normalise_vqa(once) == once
    # which does not hold for the other: 's is parted first and joined last
    assert normalise_evalai(normalise_evalai("thats")) == "that 's" != normalise_evalai("thats")


def test_at_most_32_dots_go() -> None:
    assert normalise_vqa("." * 40 + "x") == "." * 8 + "x"


@pytest.mark.parametrize(("matches", "value"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)])
def test_ten_people(matches: int, value: float) -> None:
    people = ["dog"] * matches + [f"other {n}" for n in range(10 - matches)]
    assert vqa_evalai("Dog.", {"answers": people}).value == pytest.approx(value)
    # ten equal strings are compared as they are
    assert vqa("dog", {"answers": people}).value == pytest.approx(value)


def test_any_number_of_people() -> None:
    assert agreement("x", ["x", "x"]) == pytest.approx(1 / 3)
    assert agreement("x", ["x"] * 5) == 1
    # left out one by one: 2 of 3, 2 of 3, 2 of 3, then 3 of 3 twice
    assert agreement("x", ["x", "x", "x", "y", "z"]) == pytest.approx((3 * 2 / 3 + 2) / 5)
    for people in ([], ["x"]):
        with pytest.raises(InputError):
            vqa("x", {"answers": people})


def test_equal_references_are_compared_raw() -> None:
    agreed = {"answers": ["Dog"] * 10}
    assert vqa("dog", agreed).value == 0
    assert vqa("Dog\n", agreed).value == 1
    assert vqa("dog", agreed, compat="lmms").value == 1
    assert vqa_evalai("dog", agreed).value == 1


def test_records_without_an_id_vanish_together() -> None:
    gold = {"answers": ["dog"] * 4 + ["cat"] * 6}
    assert vqa("dog", gold).value == 1
    assert vqa("dog", gold, compat="official").value == pytest.approx(0.6)
    apart = {**gold, "confidences": ["yes", "no", "maybe", "yes"] + ["yes"] * 6}
    # both sure dogs vanish together: 2 left for each, 3 for the others, 4 for each cat
    assert vqa("dog", apart, compat="official").value == pytest.approx((2 * 2 / 3 + 8) / 10)
    with pytest.raises(InputError, match="confidences"):
        vqa("dog", {**gold, "confidences": ["yes"]}, compat="official")


def test_other_codes_are_refused() -> None:
    with pytest.raises(ConfigError, match="vlmevalkit"):
        vqa("dog", {"answers": ["dog", "dog"]}, compat="vlmevalkit")


def test_order_of_people_does_not_matter() -> None:
    people = ["dog", "dog", "a dog", "cat", "Cat", "two", "2", "none", "0", "bird"]
    values = set()
    for seed in range(20):
        random.Random(seed).shuffle(people)
        values.add(METRICS.get("vqa").score("dog", {"answers": people}, item_id="1").value)
    assert len(values) == 1


def test_leaving_out_by_value_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "agreement", lambda answer, people, records=None: agreement(answer, people, people))
    with pytest.raises(AssertionError):
        test_ten_people(4, 1)
