"""Beginning a run in a folder, or taking up the one that is there, if it is the same."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vlm_eff.core.errors import InputError, explain
from vlm_eff.eval.runs.folder import HEADER, Header, read_header, read_run, write_header
from vlm_eff.eval.runs.plan import Shard, batches
from vlm_eff.eval.tasks.item import Item, Task

_ALONE = Shard()


@dataclass(frozen=True)
class Rest:
    """What one process has to do of a run.

    left:     batches to ask, each whole though some of its items may have lines: padding is part of what decides the
              last bits
    done:     ids of the items that have lines
    finished: items of this process that have lines, of total
    """

    left: list[tuple[Item, ...]]
    done: Set[str]
    finished: int
    total: int


def rest_of(folder: Path, task: Task, batch_size: int, shard: Shard = _ALONE) -> Rest:
    """What has no line in the folder yet; writes nothing.

    task: with as many items as are asked

    Raises:
        InputError: the folder holds other files, or a run that cannot be read.
        ConfigError: a batch size below 1.
    """
    begun = (folder / HEADER).exists()
    if not begun and shard.count == 1 and folder.is_dir() and any(folder.iterdir()):
        accepted = "an empty folder, a new one, or one with a run to take up"
        raise InputError(explain(f"{folder} holds other files", accepted, "Choose another folder"))
    done = read_run(folder).samples.keys() if begun else frozenset()
    mine = [batch for batch in batches(task.items, batch_size) if shard.owns(batch)]
    left = [batch for batch in mine if any(item.id not in done for item in batch)]
    return Rest(left, done, sum(item.id in done for batch in mine for item in batch), sum(map(len, mine)))


def begin(folder: Path, header: Header) -> None:
    """Write the header, or check the one that is there or that another process wrote meanwhile; see `agree`."""
    if not write_header(folder, header):
        agree(folder, header)


def agree(folder: Path, header: Header) -> None:
    """Raise `InputError` where the folder holds a run of something else."""
    if (folder / HEADER).exists():
        check_same(read_header(folder), header, f"{folder} holds a run")


# what may differ when a run is taken up again
_FREE = {"date", "specs"}


def check_same(header: Header, other: Header, what: str) -> None:
    """Raise `InputError` where lines of one run would not be lines of the other; what: who is at `header`."""
    old, new = asdict(header), asdict(other)
    wrong = [
        f"{name}.{key}" if key else name for name in old if name not in _FREE for key in _differing(old, new, name)
    ]
    if wrong:
        got = f"{what} with another {', '.join(sorted(wrong))}"
        raise InputError(explain(got, "the same task, model, plugins and settings", "Choose another folder"))


def _differing(old: dict[str, Any], new: dict[str, Any], name: str) -> list[str]:
    if old[name] == new[name]:
        return []
    if not isinstance(old[name], dict):
        return [""]
    return [key for key in {**old[name], **new[name]} if old[name].get(key) != new[name].get(key)]
