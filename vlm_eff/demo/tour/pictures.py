"""Pictures and questions of the demo: photographs that ship with two libraries, easy-VQA pictures, drawn scenes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from vlm_eff.core.errors import CapabilityError, explain
from vlm_eff.eval.subject import open_image
from vlm_eff.reference.easy_vqa import load_easy_vqa
from vlm_eff.reference.evaluate import scene_samples

_PHOTOGRAPHS = (
    ("astronaut", "is there a red object?"),
    ("coffee", "what color is the object in the middle?"),
    ("chelsea", "how many objects are there?"),
    ("rocket", "is there a circle?"),
)
_DATASET_PHOTOGRAPHS = (("china.jpg", "what color is the rectangle?"), ("flower.jpg", "what color is the object?"))


_SCENE_FAMILIES = ("read_word", "locate", "count", "relation")


@dataclass(frozen=True)
class Question:
    """A picture, what is asked of it, and the right answer where there is one."""

    title: str
    source: str
    text: str
    truth: str | None
    image: Image.Image = field(repr=False)


def photographs() -> list[Question]:
    """Real photographs. The bundled model has never seen one: its answers mean nothing, its token counts are real.

    Raises:
        CapabilityError: scikit-image or scikit-learn is missing.
    """
    try:
        from skimage import data
        from sklearn.datasets import load_sample_image
    except ImportError as error:
        raise _missing(error) from None
    made = [
        Question(name, "photograph, scikit-image", text, None, Image.fromarray(np.asarray(getattr(data, name)())))
        for name, text in _PHOTOGRAPHS
    ]
    made += [
        Question(Path(name).stem, "photograph, scikit-learn", text, None, Image.fromarray(load_sample_image(name)))
        for name, text in _DATASET_PHOTOGRAPHS
    ]
    return made


def easy_vqa_pictures(count: int) -> list[Question]:
    """`count` questions whose answer is no yes or no, each of another test picture, spread over the test split.

    Raises:
        CapabilityError: easy-vqa is missing.
    """
    try:
        rows = load_easy_vqa("test")
    except ImportError as error:
        raise _missing(error) from None
    named: dict[Path, list[tuple[str, str]]] = {}
    for path, text, answer in rows:
        if answer not in ("yes", "no"):
            named.setdefault(path, []).append((text, answer))
    paths = list(named)
    chosen = [paths[place * len(paths) // count] for place in range(count)]
    # the first question of one picture, the second of the next: shapes as well as colours
    asked = [named[path][place % len(named[path])] for place, path in enumerate(chosen)]
    return [
        Question(f"easy-VQA {path.stem}", "easy-VQA test picture", *question, open_image(path))
        for path, question in zip(chosen, asked, strict=True)
    ]


def scene_pictures(count: int) -> list[Question]:
    """`count` questions about held-out drawn scenes of several objects, each of another family."""
    made = []
    for number, family in enumerate(_SCENE_FAMILIES[:count]):
        asked = next(sample for sample in scene_samples("test", 20, 20 * number) if sample.question.family == family)
        assert isinstance(asked.image, Image.Image)  # scenes are drawn, not read
        made.append(
            Question(
                f"scene, {family}", "held-out drawn scene", asked.question.text, asked.question.answer, asked.image
            )
        )
    return made


def _missing(error: ImportError) -> CapabilityError:
    return CapabilityError(
        explain(
            f"the demo's pictures are not installed ({error})",
            "an installation with the extra `reference`",
            'Run: pip install "vlm-eff[reference]"',
        )
    )
