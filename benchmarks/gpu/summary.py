"""What to read at the end of a run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Rows = list[dict[str, Any]]


def failed(rows: Rows) -> bool:
    """Whether a check is wrong or a step ended in an error. Goals that are not met are results, not failures."""
    return any(row["kind"] == "error" or (row["kind"] == "check" and not row["right"]) for row in rows)


def summary(rows: Rows) -> str:
    """What is wrong first, then the times, then the goals."""
    checks = [row for row in rows if row["kind"] == "check"]
    wrong = [row for row in checks if not row["right"]]
    errors = [row for row in rows if row["kind"] == "error"]
    lines = [f"{len(checks)} checks, {len(wrong)} wrong, {len(errors)} errors"]
    lines += [row["text"] for row in rows if row["kind"] == "note"]
    lines += [f"WRONG {row['op']} {row['case']}: {row['error']:.2e}" for row in wrong]
    lines += [f"ERROR {row['op']} {row['case']}: {row['error']}" for row in errors]
    return "\n".join([*lines, "", *_times(rows), "", *_goals(rows)])


def _times(rows: Rows) -> Iterator[str]:
    for row in rows:
        if row["kind"] != "time":
            continue
        if "per_second" in row:
            yield f"{row['op']:18} {row['case']:34} {row['per_second'] / 1e12:10.2f} T/s"
            continue
        shares = "  ".join(f"{value:.0%} of {name}" for name, value in row["share_of"].items())
        rivals = "  ".join(f"{name} {one['ratio']:.2f}x" for name, one in row["ours_faster_by"].items())
        yield f"{row['op']:18} {row['case']:34} {row['arms']['ours']['median_us']:10.1f} us  {shares}  {rivals}"


def _goals(rows: Rows) -> Iterator[str]:
    for row in rows:
        for goal in row.get("goals", []):
            verdict = {True: "met", False: "NOT MET", None: "not measured"}[goal["met"]]
            got = "" if goal["got"] is None else f"{goal['got']:.3g}"
            yield f"{row['op']:18} {row['case']:34} {goal['goal']:50} {got:>8}  {verdict}"
