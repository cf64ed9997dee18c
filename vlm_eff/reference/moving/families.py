"""Four kinds of story, each with questions whose answer is in the change between frames and in no frame alone.

Each frame of a clip, taken by itself and with its number known, is drawn from the same distribution whatever the answer
is. Movement and order run round in circles from a random place: on a path with two ends the first frame would tell.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ..layout import CELL_SIZE, COLOURS, GRID, IMAGE_SIZE, SHAPES, SIZES
from ..scenes import SceneObject

FRAMES = 16
# a shape that comes and goes stays this long: every second frame is enough to see all of them
SLOT = 2
# 64 of 96 pixels in a clip; at every fourth frame it is still clear which way
STEP = 4
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
CHANGES = ("color", "size", "shape", "place")
COUNTS = (2, 3, 4, 5)
_CYCLE = 4
_SLACK = 3

Frames = tuple[tuple[SceneObject, ...], ...]


@dataclass(frozen=True)
class Choice:
    """One question with its options; `right` is the place of the only right one, counted from 0."""

    text: str
    options: tuple[str, ...]
    right: int


Story = tuple[Frames, tuple[Choice, ...]]


def direction(rng: random.Random, number: int) -> Story:
    """Two objects, each moving its own way, and in again on the other side: which way does each of them move?"""
    names = tuple(DIRECTIONS)
    first = number % len(names)
    second = (first + 1 + number // 16 % 3) % len(names)
    # the one drawn last may hide a part of the other for some frames
    items = [replace(item, size="large") for item in _objects(rng, 2)]
    starts = [(rng.randrange(IMAGE_SIZE), rng.randrange(IMAGE_SIZE)) for _ in items]
    moves = (names[first], names[second])
    frames = tuple(
        tuple(_at(item, moved(start, move, frame)) for item, start, move in zip(items, starts, moves, strict=True))
        for frame in range(FRAMES)
    )
    places = (number // len(names) % 4, (number // len(names) + 1) % 4)
    return frames, tuple(
        _choice(rng, f"In which direction does the {_name(item)} move?", move, names, place)
        for item, move, place in zip(items, moves, places, strict=True)
    )


def moved(start: tuple[int, int], move: str, frame: int) -> tuple[int, int]:
    """Centre of an object in a frame; what leaves at one side comes in at the other."""
    across, down = DIRECTIONS[move]
    return (start[0] + STEP * frame * across) % IMAGE_SIZE, (start[1] + STEP * frame * down) % IMAGE_SIZE


def order(rng: random.Random, number: int) -> Story:
    """Four objects shown one after another, again and again: which one comes right after, or before, another?"""
    items = _in_cells(rng, _objects(rng, _CYCLE))
    frames = in_turn(items, rng.randrange(_CYCLE * SLOT))
    questions = []
    for word, by, place in (("after", 1, number % 3), ("before", -1, (number + 1) % 3)):
        asked = rng.randrange(_CYCLE)
        others = [item.shape for item in items if item is not items[asked]]
        text = f"Which shape comes right {word} the {items[asked].shape}?"
        questions.append(_choice(rng, text, items[(asked + by) % _CYCLE].shape, others, place))
    return frames, tuple(questions)


def in_turn(items: Sequence[SceneObject], phase: int) -> Frames:
    """Frames that show one object at a time, in their order and from the start again; `phase` frames are over."""
    return tuple((items[(frame + phase) // SLOT % len(items)],) for frame in range(FRAMES))


def count(rng: random.Random, number: int) -> Story:
    """Objects shown one at a time, some of them more than once: how many different ones?"""
    wanted = COUNTS[number % len(COUNTS)]
    items = _in_cells(rng, _objects(rng, wanted))
    turns = _turns(rng, wanted)
    while len(set(turns)) < wanted:
        turns = _turns(rng, wanted)
    numbers = [str(known) for known in COUNTS]
    question = _choice(
        rng, "How many different objects appear?", str(wanted), numbers, number // len(COUNTS) % len(numbers)
    )
    return in_turn([items[turn] for turn in turns], 0), (question,)


def _turns(rng: random.Random, kinds: int) -> list[int]:
    """Which object is shown in each slot; never the same one twice in a row, which would look like once."""
    made = [rng.randrange(kinds)]
    while len(made) < FRAMES // SLOT:
        made.append((made[-1] + rng.randrange(1, kinds)) % kinds)
    return made


def change(rng: random.Random, number: int) -> Story:
    """Three objects at rest, until one of them is another: what changed?"""
    what = CHANGES[number % len(CHANGES)]
    before = _in_cells(rng, _objects(rng, 3))
    place = rng.randrange(len(before))
    after = list(before)
    after[place] = changed(before, place, what, rng)
    at = rng.randrange(FRAMES // 3, 2 * FRAMES // 3 + 1)
    frames = tuple(tuple(before if frame < at else after) for frame in range(FRAMES))
    options = [f"the {name} of an object" for name in CHANGES]
    right = f"the {what} of an object"
    return frames, (_choice(rng, "What changes?", right, options, number // len(CHANGES) % len(CHANGES)),)


def changed(items: Sequence[SceneObject], place: int, what: str, rng: random.Random) -> SceneObject:
    """One of the objects with another colour, size, shape or cell, which no other object has.

    As many others are free whatever the objects are, so a frame after the change is as likely as one before it.
    """
    item = items[place]
    if what == "color":
        return replace(item, colour=rng.choice([one for one in COLOURS if one not in {i.colour for i in items}]))
    if what == "shape":
        return replace(item, shape=rng.choice([one for one in SHAPES if one not in {i.shape for i in items}]))
    if what == "size":
        return _at(replace(item, size=next(size for size in SIZES if size != item.size)), _centre(item))
    taken = {_cell_of(_centre(one)) for one in items}
    cell = rng.choice([one for one in range(GRID * GRID) if one not in taken])
    old, (x, y) = _cell_of(_centre(item)), _centre(item)
    moved_by = ((cell % GRID - old % GRID) * CELL_SIZE, (cell // GRID - old // GRID) * CELL_SIZE)
    return _at(item, (x + moved_by[0], y + moved_by[1]))


STORIES: dict[str, Callable[[random.Random, int], Story]] = {
    "direction": direction,
    "order": order,
    "count": count,
    "change": change,
}


def _objects(rng: random.Random, wanted: int) -> list[SceneObject]:
    """Objects that differ in shape and in colour, not placed yet."""
    shapes, colours = rng.sample(SHAPES, wanted), rng.sample(tuple(COLOURS), wanted)
    sizes = [rng.choice(tuple(SIZES)) for _ in range(wanted)]
    return [SceneObject(*parts, (0, 0, 0, 0)) for parts in zip(shapes, colours, sizes, strict=True)]


def _in_cells(rng: random.Random, items: Sequence[SceneObject]) -> list[SceneObject]:
    """Each object in a cell of its own, a little off its middle."""
    placed = []
    for item, cell in zip(items, rng.sample(range(GRID * GRID), len(items)), strict=True):
        x, y = (
            part * CELL_SIZE + CELL_SIZE // 2 + rng.randint(-_SLACK, _SLACK) for part in (cell % GRID, cell // GRID)
        )
        placed.append(_at(item, (x, y)))
    return placed


def _at(item: SceneObject, centre: tuple[int, int]) -> SceneObject:
    (x, y), radius = centre, SIZES[item.size]
    return replace(item, box=(x - radius, y - radius, x + radius, y + radius))


def _centre(item: SceneObject) -> tuple[int, int]:
    left, top, right, bottom = item.box
    return (left + right) // 2, (top + bottom) // 2


def _cell_of(centre: tuple[int, int]) -> int:
    return centre[1] // CELL_SIZE * GRID + centre[0] // CELL_SIZE


def _name(item: SceneObject) -> str:
    return f"{item.colour} {item.shape}"


def _choice(rng: random.Random, text: str, right: str, options: Sequence[str], place: int) -> Choice:
    """A question whose right option stands at `place`, the others behind and before it in random order."""
    others = [option for option in options if option != right]
    rng.shuffle(others)
    return Choice(text, (*others[:place], right, *others[place:]), place)
