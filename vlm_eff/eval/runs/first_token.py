"""Time to the first token of each arm of a sweep, in pairs with the bare model."""

from __future__ import annotations

from collections.abc import Sequence

from vlm_eff.core.errors import InputError, explain
from vlm_eff.eval.compare import time_first_token
from vlm_eff.eval.measure import PairedTimes
from vlm_eff.eval.runs.arms import Arm
from vlm_eff.eval.runs.asking import show, shows
from vlm_eff.eval.subject import Subject
from vlm_eff.eval.tasks.item import Task
from vlm_eff.models.attach import attach


def timed(subject: Subject, task: Task, arms: Sequence[Arm], pairs: int) -> dict[str, PairedTimes]:
    """First token of the task's first item with each arm's plugins / bare; arms without plugins are not timed.

    Raises:
        InputError: the item cannot be opened.
    """
    shown = show(task.items[0], task.sampling, shows(subject, "auto"))
    if shown.row is None:
        raise InputError(explain(f"item {shown.item.id} cannot be timed ({shown.error})", "media that open", "Mend it"))
    inputs, made = subject.batch([shown.row]), {}
    for arm in arms:
        if arm.plugins:
            with attach(subject.model, *arm.plugins) as handle:
                made[arm.label] = time_first_token(subject, handle, inputs, pairs)
    return made
