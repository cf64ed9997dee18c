"""A result with everything needed to judge and repeat it; a record that lacks any of it cannot be made."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vlm_eff.core.errors import InputError, explain
from vlm_eff.core.files import write_file
from vlm_eff.reference.machine import package_versions


def _today() -> str:
    return datetime.now(UTC).date().isoformat()


@dataclass(frozen=True)
class Record:
    """One measurement.

    task, task_version: what was asked, in which version of the questions
    model:   name of the model; config: every setting, plugins as dicts included
    device:  the machine in words; packages: versions by name
    n:       samples behind the result; result: the numbers; date: ISO, UTC
    """

    task: str
    task_version: str
    model: str
    config: dict[str, Any]
    device: str
    n: int
    result: Any
    packages: dict[str, str] = field(default_factory=package_versions)
    date: str = field(default_factory=_today)

    def __post_init__(self) -> None:
        missing = [f.name for f in fields(self) if not getattr(self, f.name)]
        if missing:
            raise InputError(
                explain(
                    f"a record without {', '.join(missing)}",
                    "a record that says " + ", ".join(f.name for f in fields(self)),
                    "Fill in what is missing: a number without it cannot be judged",
                )
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain dict for JSON."""
        return asdict(self)

    def write(self, path: Path) -> Path:
        """Write the record as JSON."""
        return write_file(path, json.dumps(asdict(self), indent=2) + "\n")


def read_record(path: Path) -> Record:
    """Read a record that `write` wrote.

    Raises:
        InputError: the file is missing, no JSON, or lacks a part of a record.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return Record(**values)
    except (OSError, ValueError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            explain(f"{path} is no record ({error})", "a file written by Record.write", "Measure again")
        ) from None
