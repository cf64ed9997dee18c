"""Which items are asked together: always the same batches, so that a run taken up again gives the same answers."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

from vlm_eff.core.errors import ConfigError, explain
from vlm_eff.eval.tasks.item import Footage, Item, Task


@dataclass(frozen=True)
class Shard:
    """The part of a run that one of `count` processes does; batches go by the hash of their first item's id."""

    rank: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if self.count < 1 or not 0 <= self.rank < self.count:
            raise ConfigError(
                explain(f"rank {self.rank} of {self.count}", "0 <= rank < count", "Give the rank of this process")
            )

    def owns(self, batch: Sequence[Item]) -> bool:
        """Whether this process asks the batch."""
        digest = hashlib.sha256(batch[0].id.encode()).digest()
        return int.from_bytes(digest[:8], "big") % self.count == self.rank


def limited(task: Task, limit: int | None, *, whole: bool = False) -> Task:
    """The task with `limit` items, spread evenly over it.

    whole: clusters stay together, for metrics that score the items of a picture at once; about `limit` items then

    Raises:
        ConfigError: a limit below 1.
    """
    if limit is None:
        return task
    if limit < 1:
        raise ConfigError(explain(f"limit={limit}", "1 or more, or none for all", "Give a larger limit"))
    units: dict[str, list[Item]] = {}
    for item in task.items:
        units.setdefault((item.cluster or item.id) if whole else item.id, []).append(item)
    count = max(1, round(limit * len(units) / len(task.items)))
    if count >= len(units):
        return task
    chosen = list(units.values())
    chosen = [chosen[place * len(chosen) // count] for place in range(count)]
    ids = {item.id for unit in chosen for item in unit}
    return replace(task, items=tuple(item for item in task.items if item.id in ids))


def batches(items: Sequence[Item], size: int) -> list[tuple[Item, ...]]:
    """All items in batches: equal kinds of media together, and equal lengths, which need little padding.

    Raises:
        ConfigError: a batch size below 1.
    """
    if size < 1:
        raise ConfigError(explain(f"batch_size={size}", "1 or more", "Give a larger batch size"))
    alike: dict[tuple[str, ...], list[Item]] = {}
    for item in items:
        kinds = tuple("video" if isinstance(one, Footage) else "picture" for one in item.media)
        alike.setdefault(kinds, []).append(item)
    made: list[tuple[Item, ...]] = []
    for group in alike.values():
        ordered = sorted(group, key=lambda item: (len(item.prompt.split()), item.id))
        made += [tuple(ordered[start : start + size]) for start in range(0, len(ordered), size)]
    return made
