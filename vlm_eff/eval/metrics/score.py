"""What a metric says of one answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "unparsed", "empty", "error"]
STATUSES: tuple[Status, ...] = ("ok", "unparsed", "empty", "error")


@dataclass(frozen=True)
class Score:
    """One answer, scored.

    value:  from 0 (wrong) to 1 (right)
    parsed: what was read from the answer, None where nothing could be
    status: "ok"; "unparsed", no answer of the accepted form was found; "empty", the answer has no characters but
            blanks, which is wrong in every metric; "error", the item could not be asked
    """

    value: float
    parsed: str | None
    status: Status = "ok"


EMPTY = Score(0.0, None, "empty")
