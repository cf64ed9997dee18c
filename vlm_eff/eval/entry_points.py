"""What other installed packages offer to this one, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any

import vlm_eff


@dataclass(frozen=True)
class Offer:
    """An entry point of another package: its group, its name, the package, and why it cannot be used, or None."""

    group: str
    name: str
    package: str
    problem: str | None

    def to_dict(self) -> dict[str, Any]:
        """Plain dict for JSON."""
        return asdict(self)


def offers() -> tuple[Offer, ...]:
    """Every method and task that other packages register, each imported once; nothing is imported where none is."""
    return (*_looked_at("vlm_eff.plugins", _problem_of_method), *_looked_at("vlm_eff.tasks", _problem_of_task))


def _looked_at(group: str, problem: Callable[[str, Any], str | None]) -> Iterator[Offer]:
    for point in metadata.entry_points(group=group):
        try:
            found = problem(point.name, point.load())
        except Exception as error:
            found = f"{type(error).__name__}: {error}"
        yield Offer(group, point.name, point.dist.name if point.dist else "", found)


def _problem_of_method(name: str, make: Any) -> str | None:
    from vlm_eff.core.registry import BROKEN_ENTRY_POINTS

    known = vlm_eff.methods()
    if name in BROKEN_ENTRY_POINTS:
        return BROKEN_ENTRY_POINTS[name]
    return None if known[name].make is make else f"another method has the name {name!r}, and is the one that is used"


def _problem_of_task(name: str, source: Any) -> str | None:
    from vlm_eff.eval.tasks.source import BROKEN_TASKS, TASKS, all_tasks

    all_tasks()
    if name in BROKEN_TASKS:
        return BROKEN_TASKS[name]
    read = getattr(source, "read", None)
    return None if TASKS.get(name).read is read else f"another task has the name {name!r}, and is the one that is used"
