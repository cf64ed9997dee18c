"""A task of a few small pictures, with one that cannot be opened."""

from pathlib import Path

import pytest

from tests.eval.runs.pictures import picture
from tests.saved_model import model_folder, subject
from vlm_eff.eval.tasks.item import Item, Picture, Task

__all__ = ["model_folder", "subject"]
QUESTIONS = ("what is it?", "what colour is it?", "is it red?", "where is the circle?")


@pytest.fixture
def task(tmp_path: Path) -> Task:
    """Eleven items about four pictures; the picture of the last one is broken."""
    items = [
        Item(
            f"q{number}",
            QUESTIONS[number % len(QUESTIONS)],
            (Picture(picture(number // 3)),),
            {"answer": "circle"},
            f"picture {number // 3}",
            {"half": "first" if number < 5 else "second"},
        )
        for number in range(10)
    ]
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    items.append(Item("q10", QUESTIONS[0], (Picture(broken),), {"answer": "circle"}, "broken", {"half": "second"}))
    return Task("shapes", "1", "exact_match", tuple(items), max_new_tokens=3)
