"""Answers to a test split whose gold is not public, in the form that the benchmark's server takes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vlm_eff.core.errors import CapabilityError, InputError, explain
from vlm_eff.core.files import check_place, write_file
from vlm_eff.eval.tasks.item import Item, Task
from vlm_eff.eval.tasks.source import TASKS, load_task_entry_points

Form = Callable[[Sequence[Item], Mapping[str, str]], Any]


def answer_list(id_field: str) -> Form:
    """A list of {id_field: id, "answer": text}; ids that are numbers are written as numbers."""

    def form(items: Sequence[Item], answers: Mapping[str, str]) -> Any:
        return [
            {id_field: int(item.id) if item.id.isdecimal() else item.id, "answer": answers[item.id]} for item in items
        ]

    return form


def write_submission(task: Task, answers: Mapping[str, str], path: Path) -> Path:
    """Write the answers of all items of a task for the benchmark's server.

    Args:
        task: as it was read; without a limit, because servers refuse a part.
        answers: text by item id.
        path: JSON file to write.

    Raises:
        InputError: an item without an answer, or a file that cannot be written.
        CapabilityError: this benchmark takes no answers, or in a form that is not known here.
    """
    if task.name not in TASKS:
        load_task_entry_points()
    form = TASKS.get(task.name).submission
    if form is None:
        known = ", ".join(name for name in TASKS if TASKS.get(name).submission is not None)
        raise CapabilityError(explain(f"{task.name} has no form of submission here", known, "Write the file by hand"))
    missing = [item.id for item in task.items if item.id not in answers]
    if missing:
        got = f"{len(missing)} of {len(task.items)} items have no answer, the first is {missing[0]!r}"
        raise InputError(explain(got, "an answer for every item", "Finish the run first"))
    check_place(path)
    return write_file(path, json.dumps(form(task.items, answers)) + "\n")
