"""Grounding: what is read as a box, in which coordinates, and how near it is."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from vlm_eff.core.errors import InputError
from vlm_eff.eval.metrics import EMPTY, METRICS, Scored, boxes
from vlm_eff.eval.metrics.boxes import Box, centre_within, grounding, overlap, read_box, sorted_corners

# 200 wide, 100 high: its padded square has 50 rows above and below
WIDE: dict[str, Any] = {"box": [50, 20, 150, 80], "size": [200, 100], "coordinates": "unit"}


@pytest.mark.parametrize(
    ("answer", "box"),
    [
        ("[1, 2, 3, 4]", (1, 2, 3, 4)),
        ("It is at [.1,0.25 , 3., -4]. Or [5, 6, 7, 8]", (0.1, 0.25, 3, -4)),
        ('```json\n[{"bbox_2d": [1, 2, 3, 4], "label": "dog"}]```', (1, 2, 3, 4)),
        ("[[1, 2, 3, 4]]", (1, 2, 3, 4)),
        ("<box>(1,2),(3,4)</box>", (1, 2, 3, 4)),
        ("from (1, 2) to (3, 4)", None),
        ("[1, 2, 3]", None),
        ("[1, 2, 3, 4, 5]", None),
        ("1 2 3 4", None),
        ("[a, b, c, d]", None),
        ("[1e999, 2, 3, 4]", None),
    ],
)
def test_what_is_read_as_a_box(answer: str, box: Box | None) -> None:
    assert read_box(answer) == box


def test_lmms_reads_lists_alone() -> None:
    assert grounding("(0.25, 0.2), (0.75, 0.8)", WIDE).value == 1
    assert grounding("(0.25, 0.2), (0.75, 0.8)", WIDE, compat="lmms").status == "unparsed"


@pytest.mark.parametrize(
    ("coordinates", "said"),
    [
        ("unit", [0.25, 0.2, 0.75, 0.8]),
        ("unit-padded", [0.25, 0.35, 0.75, 0.65]),
        ("0-1000", [250, 200, 750, 800]),
        ("resized", [112, 56, 336, 224]),
    ],
)
def test_every_way_to_say_a_box_means_the_same_pixels(coordinates: str, said: list[float]) -> None:
    gold = {**WIDE, "coordinates": coordinates, "resized": [448, 280]}
    score = grounding(str(said), gold)
    assert score.value == 1 and json.loads(score.parsed or "") == pytest.approx([50, 20, 150, 80])
    # the same numbers in any other coordinates are another box
    for other in set(boxes.COORDINATES) - {coordinates}:
        wrong = json.loads(grounding(str(said), {**gold, "coordinates": other}).parsed or "")
        assert wrong != pytest.approx([50, 20, 150, 80])


def test_corners_in_any_order() -> None:
    assert grounding("[0.75, 0.8, 0.25, 0.2]", WIDE).value == 1
    assert grounding("[0.75, 0.2, 0.25, 0.8]", {**WIDE, "box": [150, 80, 50, 20]}).value == 1


def test_half_an_overlap_is_enough() -> None:
    assert grounding("[0.25, 0.2, 0.75, 0.5]", WIDE).value == 1
    assert grounding("[0.25, 0.2, 0.75, 0.49]", WIDE).value == 0


def test_boxes_without_an_area() -> None:
    point = (5.0, 5.0, 5.0, 5.0)
    assert overlap(point, point) == 0 and overlap(point, (0.0, 0.0, 9.0, 9.0)) == 0
    assert grounding("[0.5, 0.5, 0.5, 0.5]", WIDE).value == 0
    for gold in ({**WIDE, "box": [5, 5, 5, 9]}, {**WIDE, "size": [0, 9]}, {**WIDE, "coordinates": "resized"}):
        with pytest.raises(InputError):
            METRICS.get("grounding").check(gold)


def test_overlap_is_a_share() -> None:
    dice = random.Random(0)
    made = [sorted_corners((dice.random(), dice.random(), dice.random(), dice.random())) for _ in range(40)]
    for one in made:
        assert overlap(one, one) == pytest.approx(1)
        for two in made:
            assert 0 <= overlap(one, two) == overlap(two, one) <= 1
        assert centre_within(one, one)
    # counting points agrees
    grid = [((x + 0.5) / 100, (y + 0.5) / 100) for x in range(100) for y in range(100)]
    one, two = made[0], made[1]
    inside = [[box[0] <= x <= box[2] and box[1] <= y <= box[3] for x, y in grid] for box in (one, two)]
    common, union = (
        sum(a and b for a, b in zip(*inside, strict=True)),
        sum(a or b for a, b in zip(*inside, strict=True)),
    )
    assert overlap(one, two) == pytest.approx(common / union, abs=0.03)


def test_sums() -> None:
    said = ["[0.25, 0.2, 0.75, 0.8]", "[0.25, 0.2, 0.75, 0.32]", "nowhere", ""]
    items = [Scored(str(n), METRICS.get("grounding").score(one, WIDE, item_id=""), WIDE) for n, one in enumerate(said)]
    sums = METRICS.get("grounding").aggregate(items)
    assert sums["accuracy"] == sums["accuracy_at"]["0.5"] == 0.25 and sums["mean_iou"] == pytest.approx(0.3)
    assert sums["accuracy_at"]["0.1"] == 0.5 and sums["accuracy_at"]["0.9"] == 0.25
    # the second box is within the gold box, and so is its centre
    assert sums["centre_accuracy"] == 0.5
    assert (sums["unparsed_rate"], sums["empty_rate"], items[3].score) == (0.25, 0.25, EMPTY)
    assert list(sums["accuracy_at"].values()) == sorted(sums["accuracy_at"].values(), reverse=True)


def test_forgotten_padding_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = boxes.frame_of
    monkeypatch.setattr(boxes, "frame_of", lambda gold: honest({**gold, "coordinates": "unit"}))
    with pytest.raises(AssertionError):
        test_every_way_to_say_a_box_means_the_same_pixels("unit-padded", [0.25, 0.35, 0.75, 0.65])
