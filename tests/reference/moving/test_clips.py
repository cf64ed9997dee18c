"""Clips are fixed by their number, balanced, and no frame alone tells an answer."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from dataclasses import replace

import numpy as np
import pytest

from vlm_eff.reference.layout import IMAGE_SIZE
from vlm_eff.reference.moving import FAMILIES, FRAMES, MovingClip, families, make_clip, render_clip

WHOLE = 192
PINNED = [103405245, 103379152, 103678880, 100551040]


@pytest.fixture(scope="module")
def clips() -> list[MovingClip]:
    return [make_clip(number, "test") for number in range(WHOLE)]


def same_pixels(one: MovingClip, other: MovingClip) -> bool:
    return np.array_equal(render_clip(one), render_clip(other))


def test_a_number_gives_one_clip() -> None:
    for number in range(8):
        one = make_clip(number, "test")
        assert one == make_clip(number, "test") != make_clip(number, "train")
        frames = render_clip(one)
        assert frames.shape == (FRAMES, IMAGE_SIZE, IMAGE_SIZE, 3) and frames.dtype == np.uint8
    for wrong in ((0, "dev"), (-1, "test")):
        with pytest.raises(ValueError, match="accepted"):
            make_clip(*wrong)


def test_a_clip_is_pinned() -> None:
    clip = make_clip(1, "test")
    assert clip.questions[0].text == "Which shape comes right after the ring?"
    assert clip.questions[0].options == ("circle", "cross", "rectangle")
    assert [int(render_clip(make_clip(number, "test")).sum()) for number in range(4)] == PINNED


def test_answers_and_letters_are_balanced(clips: list[MovingClip]) -> None:
    letters: dict[str, Counter] = defaultdict(Counter)
    answers: dict[str, Counter] = defaultdict(Counter)
    for clip in clips:
        for place, question in enumerate(clip.questions):
            kind = f"{clip.family}{place}"
            letters[kind][question.right] += 1
            answers[kind][question.options[question.right]] += 1
            assert len(set(question.options)) == len(question.options)
    for kind, counted in letters.items():
        assert set(counted.values()) == {48 // len(counted)}, kind
        if not kind.startswith("order"):
            assert set(answers[kind].values()) == {12}, kind
    assert set(Counter(clip.family for clip in clips).values()) == {48}


def test_answers_agree_with_the_frames(clips: list[MovingClip]) -> None:
    for clip in clips:
        question = clip.questions[0]
        answer = question.options[question.right]
        seen = [items for items, before in zip(clip.frames, ((), *clip.frames), strict=False) if items != before]
        if clip.family == "order":
            shapes = [items[0].shape for items in seen]
            asked = question.text.split()[-1].rstrip("?")
            place = next(place for place, shape in enumerate(shapes[:-1]) if shape == asked)
            assert shapes[place + 1] == answer
        elif clip.family == "count":
            assert len({(items[0].shape, items[0].colour) for items in clip.frames}) == int(answer)
            assert len(seen) == FRAMES // families.SLOT
        elif clip.family == "change":
            (before, after), what = seen, answer.split()[1]
            (old, new), *more = [pair for pair in zip(before, after, strict=True) if pair[0] != pair[1]]
            told = {
                "color": old.colour != new.colour,
                "shape": old.shape != new.shape,
                "size": old.size != new.size,
                "place": families._centre(old) != families._centre(new),
            }
            assert not more and [name for name, differs in told.items() if differs] == [what]
        else:
            # after half a clip an object has gone 32 pixels its way, round the corner or not
            first, later = (families._centre(clip.frames[place][0]) for place in (0, 8))
            gone = [(b - a + 48) % 96 - 48 for a, b in zip(first, later, strict=True)]
            assert gone == [32 * part for part in families.DIRECTIONS[answer]]


def test_options_are_of_the_same_scene(clips: list[MovingClip]) -> None:
    for clip in clips:
        if clip.family == "order":
            shown = {items[0].shape for items in clip.frames}
            for question in clip.questions:
                assert set(question.options) | {question.text.split()[-1].rstrip("?")} == shown


def backwards(clip: MovingClip) -> MovingClip:
    return replace(clip, frames=clip.frames[::-1])


def test_a_clip_that_runs_backwards_has_the_mirrored_answer() -> None:
    opposite = {"left": "right", "right": "left", "up": "down", "down": "up"}
    rng = random.Random(0)
    item = families._objects(rng, 1)[0]
    for move, mirrored in opposite.items():
        start = (rng.randrange(IMAGE_SIZE), rng.randrange(IMAGE_SIZE))
        end = families.moved(start, move, FRAMES - 1)
        there, back = (
            MovingClip(
                0,
                "test",
                "direction",
                (240, 240, 240),
                tuple((families._at(item, families.moved(begin, way, frame)),) for frame in range(FRAMES)),
                (),
            )
            for begin, way in ((start, move), (end, mirrored))
        )
        assert same_pixels(backwards(there), back)
    items = families._in_cells(rng, families._objects(rng, 4))
    for phase in range(8):
        there = families.in_turn(items, phase)
        assert any(there[::-1] == families.in_turn(items[::-1], other) for other in range(8))


def told_by_one_frame(positions: dict[str, list[Counter]]) -> bool:
    """Whether, for some frame number, what is seen is not equally likely under every answer."""
    return any(len({frozenset(seen.items()) for seen in at}) > 1 for at in zip(*positions.values(), strict=True))


def directions(move: object) -> dict[str, list[Counter]]:
    starts = [(x, y) for x in range(0, IMAGE_SIZE, 4) for y in range(0, IMAGE_SIZE, 4)]
    return {
        way: [Counter(move(start, way, frame) for start in starts) for frame in range(FRAMES)]
        for way in families.DIRECTIONS
    }


def test_no_frame_tells_the_direction() -> None:
    assert not told_by_one_frame(directions(families.moved))

    def walled(start: tuple[int, int], way: str, frame: int) -> tuple[int, int]:
        step = families.DIRECTIONS[way]
        return tuple(min(max(a + 4 * frame * b, 0), 95) for a, b in zip(start, step, strict=True))

    assert told_by_one_frame(directions(walled))


def orders(phases: range) -> dict[str, list[Counter]]:
    items = families._in_cells(random.Random(0), families._objects(random.Random(0), 4))
    first, *others = items
    return {
        name: [
            Counter(families.in_turn(row, phase)[frame][0].shape for row in rows for phase in phases)
            for frame in range(FRAMES)
        ]
        for name, rows in {
            next_one.shape: [
                [first, next_one, *rest]
                for rest in ([a, b] for a in others for b in others if len({a, b, next_one}) == 3)
            ]
            for next_one in others
        }.items()
    }


def test_no_frame_tells_the_order() -> None:
    assert not told_by_one_frame(orders(range(8)))
    # always from the start, the first frames would tell
    assert told_by_one_frame(orders(range(1)))


def test_no_frame_tells_the_change() -> None:
    """From any state as many others can be reached by each change, and back: what follows is as likely as what was."""
    rng = random.Random(0)
    items = families._in_cells(rng, families._objects(rng, 3))
    for what, ways in (("color", 5), ("shape", 3), ("size", 1), ("place", 6)):
        reached = {families.changed(items, 0, what, random.Random(seed)) for seed in range(200)}
        assert len(reached) == ways and items[0] not in reached
        for other in reached:
            back = {families.changed([other, *items[1:]], 0, what, random.Random(seed)) for seed in range(200)}
            assert items[0] in back and len(back) == ways


def test_families_take_turns() -> None:
    assert [make_clip(number, "test").family for number in range(5)] == [*FAMILIES, FAMILIES[0]]
