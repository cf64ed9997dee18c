"""The method table: one row a registered method, for the command line and the README."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import vlm_eff
from vlm_eff.core.registry import Method
from vlm_eff.models.adapter import FAMILIES


@dataclass(frozen=True)
class MethodRow:
    """What the table says of one method; `families` are those it is tested on."""

    name: str
    room: str
    summary: str
    acts: str
    paper: str
    training_free: bool
    families: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain dict for JSON."""
        return asdict(self) | {"families": list(self.families)}


def method_rows() -> list[MethodRow]:
    """Every method, ours and those of installed packages, by room and name."""
    rows = [method_row(method) for method in vlm_eff.methods().values()]
    return sorted(rows, key=lambda row: (row.room, row.name))


def families_text(row: MethodRow) -> str:
    """The tested families in words; "all" when they are all that have an adapter."""
    return "all" if set(row.families) == set(FAMILIES) else ", ".join(row.families) or "none"


def method_row(method: Method) -> MethodRow:
    """What the table says of this method."""
    # the contract tests run every method of ours on every adapter, so an empty list means all of them
    ours = method.room != "third party"
    families = method.families or (tuple(FAMILIES) if ours else ())
    return MethodRow(
        method.name, method.room, method.summary, method.acts, method.paper, method.training_free, families
    )
