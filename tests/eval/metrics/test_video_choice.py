"""Multiple choice about videos: faults kept behind names, and the sums of each benchmark."""

from __future__ import annotations

import pytest

from vlm_eff.core.errors import InputError
from vlm_eff.eval.metrics import METRICS, Scored
from vlm_eff.eval.metrics.video_choice import longvideobench, mvbench, video_mme

GOLD = {"answer": "A", "options": ["up", "down", "to the left", "to the right"]}


def test_glued_prefixes() -> None:
    for rule in (video_mme, longvideobench):
        assert rule("Best answer: C", GOLD).parsed == "C"
        assert rule("Best answer: C", GOLD, compat="vlmevalkit").parsed == "B"
        assert rule("The answer is C", GOLD, compat="vlmevalkit").parsed == "C"
    assert video_mme("It is B, not A, I guess", GOLD, compat="lmms").parsed == "A"


@pytest.mark.parametrize(
    ("answer", "ours", "official"),
    [
        ("(A) up", 1, 1),
        ("A", 1, 1),
        ("a.", 1, 1),
        (".", 0, 1),
        (")", 0, 1),
        ("The answer is A", 1, 0),
        ("(B) down", 0, 0),
    ],
)
def test_the_official_check_of_mvbench(answer: str, ours: int, official: int) -> None:
    assert mvbench(answer, GOLD).value == ours
    assert mvbench(answer, GOLD, compat="official").value == official


def test_mvbench_of_lmms_reads_articles() -> None:
    assert mvbench("It moves a bit", {**GOLD, "answer": "B"}, compat="lmms").parsed == "A"
    assert mvbench("b. down", GOLD, compat="lmms").parsed == "B"
    assert mvbench("up", GOLD, compat="lmms").status == "unparsed"


def items_of(name: str, rows: list[tuple[str, str]], group: str) -> list[Scored]:
    """Of (answer, part of the group)."""
    chosen = METRICS.get(name)
    return [
        Scored(str(n), chosen.score(answer, GOLD, item_id=str(n)), GOLD, "", {group: part})
        for n, (answer, part) in enumerate(rows)
    ]


ROWS = [("A", "order"), ("", "order"), ("A", "order"), ("B", "order"), ("A", "count")]


def test_tasks_count_alike_whatever_their_size() -> None:
    for name in ("mlvu", "mvbench"):
        sums = METRICS.get(name).aggregate(items_of(name, ROWS, "task"))
        assert sums["accuracy"] == 0.6 and sums["mean_of_tasks"] == 0.75 and sums["n"] == 5
        assert sums["by"]["task"]["order"] == {"accuracy": 0.5, "n": 4}
    assert METRICS.get("mlvu").aggregate(items_of("mlvu", ROWS, "kind"))["mean_of_tasks"] is None


def test_empty_answers_leave_the_denominator_under_the_name_of_lmms_alone() -> None:
    sums = METRICS.get("mvbench/lmms").aggregate(items_of("mvbench/lmms", ROWS, "task"))
    assert sums["accuracy"] == 0.75 and sums["n"] == 4 and sums["empty_rate"] == 0.2
    with pytest.raises(InputError, match="only empty"):
        METRICS.get("mvbench/lmms").aggregate(items_of("mvbench/lmms", [("", "order")], "task"))


def test_kinds_of_nextqa() -> None:
    rows = [("A", "CW"), ("B", "CH"), ("A", "TP"), ("B", "TN"), ("A", "TC"), ("A", "DO")]
    sums = METRICS.get("nextqa").aggregate(items_of("nextqa", rows, "type"))
    assert sums["kinds"] == {
        "causal": {"accuracy": 0.5, "n": 2},
        "descriptive": {"accuracy": 1.0, "n": 1},
        "temporal": {"accuracy": pytest.approx(2 / 3), "n": 3},
    }
    assert sums["by"]["type"]["TN"] == {"accuracy": 0.5, "n": 2} and "TP" not in sums["by"]["type"]
    with pytest.raises(InputError, match="type"):
        METRICS.get("nextqa").aggregate(items_of("nextqa", [("A", "XY")], "type"))


def test_durations_of_longvideobench() -> None:
    rows = [("A", "15"), ("B", "3600"), ("E", "60"), ("A", "600")]
    sums = METRICS.get("longvideobench").aggregate(items_of("longvideobench", rows, "duration_group"))
    assert {part: one["accuracy"] for part, one in sums["by"]["duration_group"].items()} == {
        "15": 1,
        "60": 0,
        "600": 1,
        "3600": 0,
    }
    assert sums["unparsed_rate"] == 0.25
