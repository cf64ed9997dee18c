"""Grounding: a box in words against a box in pixels.

Models say boxes in different coordinates, and nothing in the numbers tells which. They are named, and converted to
pixels of the original image before anything is compared.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from vlm_eff.core.errors import InputError, explain
from vlm_eff.eval.metrics.gold import choice_of, numbers_of
from vlm_eff.eval.metrics.metric import Compat, Gold, Scored, accuracy, check_compat, mean, register
from vlm_eff.eval.metrics.score import Score

Box = tuple[float, float, float, float]
COORDINATES: Final = ("unit", "unit-padded", "0-1000", "resized")
RIGHT_FROM = 0.5
_N: Final = r"\s*([-+]?(?:[0-9]{1,9}(?:\.[0-9]{0,17})?|\.[0-9]{1,17}))\s*"
_LIST: Final = re.compile(rf"\[{_N},{_N},{_N},{_N}\]")
_CORNERS: Final = re.compile(rf"\({_N},{_N}\)\s*(?:,\s*)?\({_N},{_N}\)")


def grounding(answer: str, gold: Gold, *, item_id: str = "", compat: Compat | None = None) -> Score:
    """Intersection over union of 0.5 or more with the gold box: RefCOCO, RefCOCO+, RefCOCOg.

    gold: {"box": [x1, y1, x2, y2], pixels of the original image, "size": [width, height] of it, pixels,
          "coordinates": how the model says boxes, see below, "resized": [width, height], for "resized" alone}

    coordinates: "unit" 0 to 1 of the image; "unit-padded" 0 to 1 of the image padded to a square, centred (LLaVA-1.5);
    "0-1000" thousandths of the image (Qwen-VL, Qwen2-VL, Qwen3-VL, InternVL); "resized" pixels of the image as the
    processor resized it (Qwen2.5-VL)

    Reads the first [x1, y1, x2, y2] or (x1, y1), (x2, y2); corners in any order; no box is unparsed, and wrong.
    compat="lmms" reads the first [x1, y1, x2, y2] alone. One item a referring sentence, not an object. `parsed` is the
    box in pixels of the original image, as JSON.

    Source: Kazemzadeh et al. 2014; Yu et al. 2016, arXiv:1608.00272; lmms-eval.
    """
    check_compat(compat, "lmms")
    right, frame = gold_box(gold), frame_of(gold)
    said = read_box(answer, lists_only=compat == "lmms")
    if said is None:
        return Score(0.0, None, "unparsed")
    box = to_pixels(said, frame)
    return Score(float(overlap(box, right) >= RIGHT_FROM), json.dumps(box))


def read_box(answer: str, *, lists_only: bool = False) -> Box | None:
    """Four numbers as the answer says them: the first of [a, b, c, d] and, unless `lists_only`, (a, b), (c, d)."""
    found = [match for match in (_LIST.search(answer), None if lists_only else _CORNERS.search(answer)) if match]
    if not found:
        return None
    a, b, c, d = map(float, min(found, key=lambda match: match.start()).groups())
    return a, b, c, d


@dataclass(frozen=True)
class Frame:
    """What coordinates of a model mean: pixels of the original image = said x (across, down) - (left, top)."""

    across: float
    down: float
    left: float = 0.0
    top: float = 0.0


def frame_of(gold: Gold) -> Frame:
    """Read from `gold` what the coordinates of the model mean; see `grounding`."""
    name = choice_of(gold, "coordinates", COORDINATES)
    width, height = _size(gold, "size")
    if name == "unit":
        return Frame(width, height)
    if name == "0-1000":
        return Frame(width / 1000, height / 1000)
    if name == "resized":
        shown = _size(gold, "resized")
        return Frame(width / shown[0], height / shown[1])
    side = max(width, height)
    # the processor pastes at a whole pixel
    return Frame(side, side, (side - width) // 2, (side - height) // 2)


def to_pixels(box: Box, frame: Frame) -> Box:
    """Convert a box to pixels of the original image, corners sorted."""
    x1, x2 = (x * frame.across - frame.left for x in (box[0], box[2]))
    y1, y2 = (y * frame.down - frame.top for y in (box[1], box[3]))
    return sorted_corners((x1, y1, x2, y2))


def sorted_corners(box: Box) -> Box:
    """The same box from its upper left to its lower right corner."""
    x1, y1, x2, y2 = box
    return min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)


def overlap(one: Box, other: Box) -> float:
    """Intersection over union of two boxes with sorted corners; 0 where neither has an area."""
    across = min(one[2], other[2]) - max(one[0], other[0])
    down = min(one[3], other[3]) - max(one[1], other[1])
    common = max(across, 0.0) * max(down, 0.0)
    union = _area(one) + _area(other) - common
    return common / union if union > 0 else 0.0


def centre_within(box: Box, gold: Box) -> bool:
    """The centre of the first box lies in the second, edges included."""
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    return gold[0] <= x <= gold[2] and gold[1] <= y <= gold[3]


def gold_box(gold: Gold) -> Box:
    """`gold["box"]` with sorted corners; it must have an area."""
    x1, y1, x2, y2 = numbers_of(gold, "box", 4)
    box = sorted_corners((x1, y1, x2, y2))
    if not _area(box) > 0:
        raise InputError(explain(f"gold box {list(box)}", "a box with an area", "Correct the reader"))
    return box


def grounding_total(items: Sequence[Scored]) -> dict[str, Any]:
    """What `accuracy` says (IoU of 0.5 or more), and more of how near the boxes are.

    mean_iou:        over all items, 0 where there is no box
    accuracy_at:     by "0.1" to "0.9", share of items with at least this IoU
    centre_accuracy: share of items whose centre lies in the gold box
    """
    boxes = [(json.loads(item.score.parsed) if item.score.parsed else None, gold_box(item.gold)) for item in items]
    near = [overlap(box, right) if box else 0.0 for box, right in boxes]
    return {
        **accuracy(items),
        "mean_iou": mean(near),
        "accuracy_at": {f"{tenth / 10}": mean(float(one >= tenth / 10) for one in near) for tenth in range(1, 10)},
        "centre_accuracy": mean(float(box is not None and centre_within(box, right)) for box, right in boxes),
    }


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _size(gold: Gold, key: str) -> tuple[float, float]:
    width, height = numbers_of(gold, key, 2)
    if not (width >= 1 and height >= 1 and math.isfinite(width * height)):
        raise InputError(explain(f"gold[{key!r}] = {[width, height]}", "pixels, 1 or more", "Correct the reader"))
    return width, height


register("grounding", grounding, total=grounding_total, compat={"lmms": None})
