"""Reading letters: every way against its own rule, and the sums of MMBench."""

from __future__ import annotations

import random

import pytest

from vlm_eff.eval.metrics import METRICS, Scored, choice
from vlm_eff.eval.metrics.choice import ROTATION, hashed_letter, mmmu, multiple_choice
from vlm_eff.eval.metrics.letters import (
    Reading,
    careful,
    first_capital,
    first_character,
    last_form,
    leading_capital,
    ranked,
    single_word,
)
from vlm_eff.eval.metrics.open_answers import open_answer

OPTIONS = {"A": "a dog", "B": "the dark red cat", "C": "cat", "D": "left"}
GOLD = {"answer": "B", "options": list(OPTIONS.values())}

CASES: list[tuple[Reading, list[tuple[str, str | None]]]] = [
    (
        careful,
        [
            ("b", "B"),
            ("(B)", "B"),
            ("B. cat", "B"),
            ("(d) left", "D"),
            ("**Answer**: B", "B"),
            ("The answer is (c)", "C"),
            ("the answer is c.", "C"),
            ("The answer is B, option A is wrong", "B"),
            ("I think it is C because A is wrong", "C"),
            ("A dog is on the sofa", "A"),
            ("The cat is on the sofa", "C"),
            ("It is the dark red cat.", "B"),
            ("A bird is on the sofa", None),
            ("C or D", None),
            ("Both A and B", None),
            ("Both", None),
            ("E", None),
            ("?", None),
        ],
    ),
    (
        # lmms-eval's faults, as found in its runs
        ranked,
        [
            ("I think it is C because A is wrong", "A"),
            ("b", None),
            ("the answer is (c)", None),
            ("A dog is on the left", "A"),
            ("C. It is D) or (B)", "C"),
            ("It is A: D", "D"),
            ("(C) or B. or so", "C"),
            ("the answer is B or A. or so", "A"),
        ],
    ),
    (
        first_capital,
        [
            ("The best option is C", "C"),
            ("Best answer: C", "C"),
            ("Both", "B"),
            ("A dog", "A"),
            ("c", None),
            ("it is not in the list of what I could see here at all", None),
            ("E", None),
        ],
    ),
    (
        last_form,
        [
            ("(A) or (B)", "B"),
            ("A thing, (C).", "C"),
            ("B it is, not C said he", "C"),
            ("NASA says B or so", "B"),
            ("B.", "B"),
            ("First A. then B. said", "B"),
            ("one can see it to the left here", "D"),
            ("left of it", None),
            ("it is not a cat, it is a dog", "A"),
        ],
    ),
    (
        leading_capital,
        [("B", "B"), ("b", "B"), ("B. cat", "B"), ("b. cat", None), ("The answer is B", None), ("F.", None)],
    ),
    (first_character, [("b", "B"), ("Both", "B"), ("The answer is A", None), ("(A)", None)]),
    (
        single_word,
        [
            ("(B)", "B"),
            ("The answer: B", "B"),
            ("B or C", None),
            ("B is what one would say to this", None),
            ("It is to the left.", "D"),
            ("the dark red cat", None),
            ("the answer is " * 9 + "left", None),
        ],
    ),
]


@pytest.mark.parametrize(
    ("reading", "answer", "letter"),
    [(reading, answer, letter) for reading, rows in CASES for answer, letter in rows],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_what_is_read(reading: Reading, answer: str, letter: str | None) -> None:
    assert reading(answer, OPTIONS) == letter


def test_every_way_reads_the_bare_letter() -> None:
    for reading, _ in CASES:
        for letter in OPTIONS:
            assert reading(letter, OPTIONS) == letter


def test_ours_and_the_one_of_lmms() -> None:
    answer = "I think it is B because A is wrong"
    assert multiple_choice(answer, GOLD).value == 1
    assert multiple_choice(answer, GOLD, compat="lmms").parsed == "A"


def test_mmmu_draws_by_item_and_never_by_chance() -> None:
    gold = {**GOLD, "question_type": "multiple-choice"}
    assert mmmu("hm", gold).status == "unparsed" and mmmu("hm", gold).value == 0
    random.seed(1)
    state = random.getstate()
    drawn = [mmmu("hm", gold, item_id=str(n), compat="official") for n in range(400)]
    assert random.getstate() == state
    assert drawn == [mmmu("hm", gold, item_id=str(n), compat="official") for n in range(400)]
    assert {one.parsed for one in drawn} == set(OPTIONS) and {one.status for one in drawn} == {"unparsed"}
    assert 60 < sum(one.value for one in drawn) < 140
    assert drawn != [mmmu("hm", gold, item_id=str(n), compat="official", seed=1) for n in range(400)]
    # the letters of these are part of what a version of ours means
    assert [hashed_letter(f"validation_{n}", 4) for n in range(6)] == ["A", "C", "B", "A", "C", "D"]


def test_of_several_dotted_letters_the_official_code_takes_the_first_option() -> None:
    gold = {**GOLD, "question_type": "multiple-choice"}
    assert mmmu("First A. then B. said", gold).parsed == "B"
    assert mmmu("First A. then B. said", gold, compat="official").parsed == "A"


@pytest.mark.parametrize(
    ("answer", "gold", "right"),
    [
        ("The area is 1,234 cm", "1234.0", True),
        ("It is about 3.14159", "3.14", True),
        ("2 + 3 = 5", "5", True),
        ("2 + 3 = 5", "2", False),
        ("So it is 7. No, it is 8", "7", False),
        ("It was a Doric column", "doric", True),
        ("1.5e3", "1500", True),
        ("1.5e3", "1.5", False),
        ("12", "1", False),
        ("so\nthe answer is: Paris\nindeed", "paris", True),
        ("no answer", "a", False),
        ("it is a", "a", True),
    ],
)
def test_open_questions(answer: str, gold: str, right: bool) -> None:
    assert open_answer(answer, {"answers": [gold]}).value == right
    assert METRICS.get("mmmu").score(answer, {"question_type": "open", "answers": [gold]}, item_id="").value == right


def test_one_character_in_open_questions() -> None:
    assert open_answer("no answer", {"answers": ["a"]}, official=True).value == 1
    assert open_answer("a", {"answers": ["a"]}, official=True).value == 1
    assert open_answer("banana", {"answers": ["n"]}, official=True).value == 0


def rotated(answers: dict[int, list[str]]) -> list[Scored]:
    """By question, what was answered to its rotations; the gold letter moves along."""
    made = []
    for question, said in answers.items():
        for rotation, answer in enumerate(said):
            gold = {
                "answer": "ABCD"[rotation],
                "options": ["w", "x", "y", "z"],
                "index": question + rotation * ROTATION,
            }
            made.append(Scored(str(gold["index"]), METRICS.get("mmbench").score(answer, gold, item_id=""), gold))
    return made


def test_a_question_counts_when_all_its_rotations_are_right() -> None:
    sums = METRICS.get("mmbench").aggregate(rotated({3: list("ABCD"), 4: list("ABCA"), 5: ["A", "B", "", "D"]}))
    assert sums["vanilla"] == 1 and sums["circular"] == pytest.approx(1 / 3)
    assert sums["accuracy"] == pytest.approx(10 / 12) and sums["empty_rate"] == pytest.approx(1 / 12)
    assert (sums["questions"], sums["incomplete"]) == (3, 0)


def test_questions_with_rotations_missing_are_counted_apart() -> None:
    sums = METRICS.get("mmbench").aggregate(rotated({3: list("ABCD"), 4: list("AB")}))
    assert (sums["circular"], sums["questions"], sums["incomplete"], sums["vanilla"]) == (1, 1, 1, 1)
    assert METRICS.get("mmbench").aggregate(rotated({4: ["B"]}))["circular"] is None


def test_any_rotation_instead_of_all_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "all", any, raising=False)
    with pytest.raises(AssertionError):
        test_a_question_counts_when_all_its_rotations_are_right()
