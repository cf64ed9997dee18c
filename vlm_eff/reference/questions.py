"""Questions about a scene, with one exact answer each, in nine families."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .layout import COLOURS, SHAPES, cell_index

if TYPE_CHECKING:
    from .scenes import Scene, SceneObject

FAMILIES = ("shape", "colour", "size", "count", "yes_no", "relation", "read_word", "read_digit", "locate")


@dataclass(frozen=True)
class Question:
    """One question, the only right answer, the family it is reported under, and where to look.

    `boxes` (left, top, right, bottom in pixels) holds what the question names, in the order of the text; it is empty
    for questions about the whole picture (count, yes_no) and where nobody knows (easy-VQA).
    """

    text: str
    answer: str
    family: str
    boxes: tuple[tuple[int, int, int, int], ...] = ()


def questions(scene: Scene, seed: int) -> list[Question]:
    """Return the questions of a scene in a shuffled order that the seed fixes.

    Every object is asked about only in words that name it alone ("the circle" where there is one circle). Questions
    with the answers yes and no are drawn in equal shares.
    """
    rng = random.Random(f"questions:{scene.split}:{scene.seed}:{seed}")
    named = _unique_names(scene)
    found = [
        *_shape(scene, rng),
        *_colour(scene, rng),
        *(Question(f"what size is the {name}?", item.size, "size", (item.box,)) for name, item in _some(named, 2, rng)),
        *_count(scene, rng),
        *_yes_no(scene, rng),
        *_relation(named, rng),
        *_read(scene, rng),
        *_locate(scene, named, rng),
    ]
    rng.shuffle(found)
    return found


def _unique_names(scene: Scene) -> list[tuple[str, SceneObject]]:
    """Return every phrase that names exactly one object."""
    shapes = Counter(item.shape for item in scene.objects)
    colours = Counter(item.colour for item in scene.objects)
    both = Counter((item.colour, item.shape) for item in scene.objects)
    named = []
    for item in scene.objects:
        if shapes[item.shape] == 1:
            named.append((item.shape, item))
        if colours[item.colour] == 1:
            named.append((f"{item.colour} object", item))
        if both[item.colour, item.shape] == 1:
            named.append((f"{item.colour} {item.shape}", item))
    return named


def _some(items: list, count: int, rng: random.Random) -> list:
    return rng.sample(items, min(count, len(items)))


def _shape(scene: Scene, rng: random.Random) -> list[Question]:
    colours = Counter(item.colour for item in scene.objects)
    found = [
        Question(f"what shape is the {item.colour} object?", item.shape, "shape", (item.box,))
        for item in scene.objects
        if colours[item.colour] == 1
    ]
    found += [
        Question(f"what shape is in the {item.cell}?", item.shape, "shape", (item.box,)) for item in scene.objects
    ]
    return _some(found, 2, rng)


def _colour(scene: Scene, rng: random.Random) -> list[Question]:
    shapes = Counter(item.shape for item in scene.objects)
    found = [
        Question(f"what color is the {item.shape}?", item.colour, "colour", (item.box,))
        for item in scene.objects
        if shapes[item.shape] == 1
    ]
    found += [
        Question(f"what color is the object in the {item.cell}?", item.colour, "colour", (item.box,))
        for item in scene.objects
    ]
    return _some(found, 2, rng)


def _count(scene: Scene, rng: random.Random) -> list[Question]:
    shape = rng.choice((rng.choice(scene.objects).shape, rng.choice(SHAPES)))
    colour = rng.choice((rng.choice(scene.objects).colour, rng.choice(tuple(COLOURS))))
    of_shape = sum(item.shape == shape for item in scene.objects)
    of_colour = sum(item.colour == colour for item in scene.objects)
    found = [
        Question("how many objects are there?", str(len(scene.objects)), "count"),
        Question(f"how many {shape} objects are there?", str(of_shape), "count"),
        Question(f"how many {colour} objects are there?", str(of_colour), "count"),
    ]
    return _some(found, 2, rng)


def _yes_no(scene: Scene, rng: random.Random) -> list[Question]:
    colours = {item.colour for item in scene.objects}
    shapes = {item.shape for item in scene.objects}
    both = {(item.colour, item.shape) for item in scene.objects}
    found = []
    for present in rng.sample((True, False), 2):
        kind = rng.choice(("colour", "shape", "both", "both"))
        if kind == "colour":
            pool = colours if present else set(COLOURS) - colours
            name = f"{rng.choice(sorted(pool))} object"
        elif kind == "shape":
            pool = shapes if present else set(SHAPES) - shapes
            name = rng.choice(sorted(pool))
        elif present:
            name = " ".join(rng.choice(sorted(both)))
        else:
            # half of the absent pairs mix a colour and a shape that are both there
            mixed = {(colour, shape) for colour in colours for shape in shapes} - both
            anything = {(colour, shape) for colour in COLOURS for shape in SHAPES} - both
            name = " ".join(rng.choice(sorted(mixed if mixed and rng.random() < 0.5 else anything)))
        negated = rng.random() < 0.25
        text = f"is there no {name}?" if negated else f"is there a {name}?"
        found.append(Question(text, "yes" if present != negated else "no", "yes_no"))
    return found


def _relation(named: list[tuple[str, SceneObject]], rng: random.Random) -> list[Question]:
    found = []
    for _ in range(6 if named else 0):
        (first, one), (second, other) = rng.choice(named), rng.choice(named)
        rows, columns = zip(cell_index(one.box), cell_index(other.box), strict=True)
        answers = {}
        if columns[0] != columns[1]:
            answers |= {"left of": columns[0] < columns[1], "right of": columns[0] > columns[1]}
        if rows[0] != rows[1]:
            answers |= {"above": rows[0] < rows[1], "below": rows[0] > rows[1]}
        if answers:
            relation = rng.choice(tuple(answers))
            answer = "yes" if answers[relation] else "no"
            found.append(Question(f"is the {first} {relation} the {second}?", answer, "relation", (one.box, other.box)))
    return found[:3]


def _read(scene: Scene, rng: random.Random) -> list[Question]:
    found = []
    if scene.word is not None:
        text = rng.choice(("what word is written?", "read the word.", "what does the text say?"))
        found.append(Question(text, scene.word.text, "read_word", (scene.word.box,)))
    if scene.digit is not None:
        text = rng.choice(("what digit is shown?", "read the digit.", "which digit do you see?"))
        found.append(Question(text, scene.digit.text, "read_digit", (scene.digit.box,)))
    return found


def _locate(scene: Scene, named: list[tuple[str, SceneObject]], rng: random.Random) -> list[Question]:
    found = [Question(f"where is the {name}?", item.cell, "locate", (item.box,)) for name, item in _some(named, 2, rng)]
    for name, text in (("word", scene.word), ("digit", scene.digit)):
        if text is not None:
            found.append(Question(f"where is the {name}?", text.cell, "locate", (text.box,)))
    return _some(found, 2, rng)
