"""What finished runs say, and the record of a sweep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from vlm_eff.eval.measure import PairedTimes
from vlm_eff.eval.metrics import METRICS
from vlm_eff.eval.record import Record
from vlm_eff.eval.runs.arms import Arm
from vlm_eff.eval.runs.folder import Run
from vlm_eff.eval.stats.summary import in_order, scored, summarise


def summary(run: Run) -> dict[str, Any]:
    """What a finished run says: what its metric makes of all items, the interval of the accuracy, and mean costs."""
    said = summarise(run, run.header.label)
    found = METRICS.get(run.header.task["metric"]).aggregate(scored(in_order(run)))
    return {
        **found,
        "interval": None if said.accuracy.low is None else [said.accuracy.low, said.accuracy.high],
        "new_tokens": round(said.new_tokens, 3),
        "costs": {name: round(value, 5) for name, value in said.costs.items() if value is not None},
    }


def sweep_record(
    arms: Sequence[Arm],
    runs: Mapping[str, Mapping[str, Run]],
    times: Mapping[str, PairedTimes],
    unreachable: Mapping[str, str],
    settings: Mapping[str, Any],
) -> Record:
    """The record of a sweep.

    runs:  by task, then by arm's label, all finished; times: first token with the arm / bare, where it was timed
    """
    first = next(iter(next(iter(runs.values())).values())).header
    rows = []
    for arm in arms:
        tasks = {name: summary(found[arm.label]) for name, found in runs.items() if arm.label in found}
        row = {"label": arm.label, "method": arm.method, "n_eq_asked": arm.n_eq_asked, "tasks": tasks}
        rows.append(row | ({"first_token": asdict(times[arm.label])} if arm.label in times else {}))
    headers = {name: next(iter(found.values())).header for name, found in runs.items()}
    return Record(
        task=", ".join(runs),
        task_version="; ".join(f"{name} {header.task['version']}" for name, header in headers.items()),
        model=first.model,
        config={
            "plugins": {arm.label: [plugin.to_dict() for plugin in arm.plugins] for arm in arms},
            "tasks": {name: header.task for name, header in headers.items()},
            "settings": {key: value for key, value in first.settings.items() if key not in ("baseline", "limit")},
            **settings,
        },
        device=first.device,
        packages=first.packages,
        date=max(run.header.date for found in runs.values() for run in found.values()),
        n=sum(header.task["items"] for header in headers.values()),
        result={"rows": rows, "unreachable": dict(unreachable)},
    )
