"""Times beside accuracies: from the record of a bench or of an evaluation, and only where they belong together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlm_eff.core.errors import InputError, explain
from vlm_eff.eval.record import Record, read_record
from vlm_eff.eval.runs.folder import Run
from vlm_eff.eval.stats.comparable import other_place
from vlm_eff.eval.stats.interval import Interval


def read_times(
    path: Path, runs: Sequence[Run], labels: Sequence[str], *, force: bool = False
) -> tuple[dict[str, Interval], str]:
    """Ratios of the time to the first token to that of the bare model, by label, and where they come from.

    path:  what `vlm-eff bench` or `vlm-eff eval --pairs` wrote; labels: of the runs, in their order
    force: take them from another machine or other packages, which the text then says

    Raises:
        InputError: no record, several cases in it, no time of any of the runs, another model, or another place.
    """
    record = read_record(path)
    first = runs[0].header
    if record.model != first.model:
        raise InputError(
            explain(f"times of {record.model} in {path}", f"times of {first.model}", "Measure the model of the runs")
        )
    elsewhere = other_place(first.device, record.device, first.packages, record.packages)
    if elsewhere and not force:
        raise InputError(
            explain(
                f"times measured elsewhere than the answers ({'; '.join(elsewhere)})",
                "one machine with the same packages",
                "Measure in one place, or give --force: the report then says so",
            )
        )
    timed = _timed(record, path)
    found = {
        label: _interval(timed[run.header.label])
        for run, label in zip(runs, labels, strict=True)
        if run.header.label in timed
    }
    if not found:
        raise InputError(
            explain(f"no time of these runs in {path}", ", ".join(timed) or "a record with times", "Measure these runs")
        )
    pairs = min(int(times["pairs"]) for times in timed.values())
    text = (
        f"First token: time with the plugin / bare, median of {pairs} interleaved pairs with its 95 % interval, "
        f"{record.device}{', ratios only' if 'CPU' in record.device else ''}, {record.date}, {path.name}."
    )
    if elsewhere:
        text += f" Measured elsewhere than the answers: {'; '.join(elsewhere)}."
    return found, text


def _timed(record: Record, path: Path) -> dict[str, Mapping[str, Any]]:
    """Paired times by the name of the arm."""
    try:
        if isinstance(record.result, dict):
            return {row["label"]: row["first_token"] for row in record.result["rows"] if "first_token" in row}
        if len({str(row["case"]) for row in record.result}) > 1:
            raise InputError(
                explain(f"several cases in {path}", "a record of one case", "Bench with one value of each axis")
            )
        return {row["arm"]: row["ratios"]["ttft"] for row in record.result if "ttft" in row["ratios"]}
    except (KeyError, TypeError) as error:
        accepted = "what vlm-eff bench or vlm-eff eval --pairs writes"
        raise InputError(explain(f"{path} holds no times ({error!r})", accepted, "Measure again")) from None


def _interval(times: Mapping[str, Any]) -> Interval:
    return Interval(float(times["ratio"]), float(times["low"]), float(times["high"]))
