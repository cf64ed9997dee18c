"""A tiny model, and a task of a few pictures with several questions each."""

import pytest

from tests.eval.runs.pictures import picture
from tests.saved_model import model_folder, subject
from vlm_eff.eval.tasks.item import Item, Picture, Task

__all__ = ["model_folder", "subject"]
QUESTIONS = ("what is it?", "what color is it?", "is it red?")


@pytest.fixture
def task() -> Task:
    """Twelve items about four pictures."""
    items = tuple(
        Item(f"q{number}", QUESTIONS[number % 3], (Picture(picture(number // 3)),), {"answer": "x"}, f"p{number // 3}")
        for number in range(12)
    )
    return Task("shapes", "1", "exact_match", items, max_new_tokens=3)
