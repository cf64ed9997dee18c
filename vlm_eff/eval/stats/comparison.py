"""Several runs beside one reference: every run by itself, what it changed, by group, and beside the baselines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from vlm_eff.core.errors import ConfigError, explain
from vlm_eff.eval.runs.folder import Run, Sample
from vlm_eff.eval.stats.baselines import Bar, beaten_text, is_bare, is_downsized, spends_no_more
from vlm_eff.eval.stats.comparable import comparable, place_differences, require_finished
from vlm_eff.eval.stats.interval import Interval, cluster_interval
from vlm_eff.eval.stats.paired import DIFFERENCES, Paired, Vtc, pair, vtc_of
from vlm_eff.eval.stats.summary import SCORES, Summary, codes_of, in_order, labels_of, scores, summarise

NO_GROUP = "(none)"


@dataclass(frozen=True)
class Row:
    """One run; `paired` is None for the reference."""

    summary: Summary
    paired: Paired | None


@dataclass(frozen=True)
class GroupCell:
    """One run in one part of the items; `delta` against the reference is None for the reference itself."""

    accuracy: Interval
    delta: Interval | None


@dataclass(frozen=True)
class Group:
    """One part of a breakdown: how many items, and a cell a run in the order of the rows."""

    name: str
    items: int
    clusters: int
    cells: tuple[GroupCell, ...]


@dataclass(frozen=True)
class Compared:
    """Runs beside their reference, which is the first row.

    groups:  by name of the breakdown, its parts
    bars:    every method beside the best baseline that spends no more; beaten: the same in words
    remarks: what a reader has to know of the runs
    """

    rows: tuple[Row, ...]
    groups: dict[str, tuple[Group, ...]]
    bars: tuple[Bar, ...]
    beaten: str
    remarks: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain dict for JSON."""
        return asdict(self)


def compare_runs(
    reference: Run, others: Sequence[Run], *, by: Sequence[str] = (), across_models: bool = False, seed: int = 0
) -> Compared:
    """Compare runs with a reference, which is mostly the bare model; none besides it is a summary of it alone.

    by:            names of breakdowns, such as "question_type"
    across_models: the models may differ
    seed:          of the resampling; one seed gives one result

    Raises:
        InputError: runs that asked different things (see `comparable`), or that are not finished.
        ConfigError: a run twice, a reference that cannot be one, or a breakdown that the items do not have.
    """
    runs = [reference, *others]
    labels = labels_of(runs)
    _check_reference(reference, others)
    require_finished(reference)
    for other in others:
        comparable(reference, other, across_models=across_models)
    samples = [in_order(run) for run in runs]
    summaries = _with_ratios([summarise(run, label, seed=seed) for run, label in zip(runs, labels, strict=True)])
    small = [index for index, run in enumerate(runs) if is_downsized(run.header)]
    rows = [Row(summaries[0], None)]
    for index in range(1, len(runs)):
        vtc = None if index in small else _vtc(samples, summaries, index, small)
        rows.append(Row(summaries[index], pair(samples[0], samples[index], vtc=vtc, seed=seed)))
    bars = tuple(_bar(samples, summaries, index, seed) for index, one in enumerate(summaries) if one.kind == "method")
    # without a baseline there is nothing to stand beside
    beaten = beaten_text(bars) if any(one.kind == "baseline" for one in summaries) else ""
    groups = {name: _groups(samples, name, seed) for name in by}
    return Compared(tuple(rows), groups, bars, beaten, tuple(_remarks(runs, summaries)))


def _check_reference(reference: Run, others: Sequence[Run]) -> None:
    if is_downsized(reference.header):
        raise ConfigError(
            explain(f"{reference.folder} first, which was shown smaller pictures", "the bare run first", "Reorder them")
        )
    bare = [run for run in others if is_bare(run.header) and run.header.model == reference.header.model]
    if bare and not is_bare(reference.header):
        got = f"{reference.folder} ({reference.header.label}) first, and the bare run {bare[0].folder} behind it"
        raise ConfigError(explain(got, "the bare run first: the others are compared with it", "Reorder them"))


def _with_ratios(summaries: list[Summary]) -> list[Summary]:
    """What smaller pictures cost beside whole ones is only known where the runs hold absolute numbers."""
    first = summaries[0]
    for one in summaries if first.kind == "bare" else ():
        for name in ("kv_bytes", "flops"):
            whole, part = first.costs[name], one.costs[name]
            if one.costs[f"{name}_ratio"] is None and whole and part is not None:
                one.costs[f"{name}_ratio"] = part / whole
    return summaries


def _vtc(samples: list[list[Sample]], summaries: list[Summary], index: int, small: list[int]) -> Vtc | None:
    """By the run of smaller pictures whose count of tokens is the nearest."""
    wanted = summaries[index].costs["n_eq"]
    known = [(abs(got - wanted), one) for one in small if (got := summaries[one].costs["n_eq"]) and wanted]
    if not small or (len(small) > 1 and not known):
        return None
    one = min(known)[1] if known else small[0]
    return vtc_of(samples[0], samples[index], samples[one], summaries[one].label, summaries[one].costs["n_eq"])


def _bar(samples: list[list[Sample]], summaries: list[Summary], index: int, seed: int) -> Bar:
    method = summaries[index]
    cheaper = [
        number
        for number, one in enumerate(summaries)
        if one.kind == "baseline" and spends_no_more(one.costs, method.costs)
    ]
    if not cheaper:
        return Bar(method.label, method.accuracy.value, None, None, None)
    best = max(cheaper, key=lambda number: summaries[number].accuracy.value)
    margin = cluster_interval(
        scores(samples[index]) - scores(samples[best]), codes_of(samples[0]), limits=DIFFERENCES, seed=seed
    )
    baseline = summaries[best]
    return Bar(method.label, method.accuracy.value, baseline.label, baseline.accuracy.value, margin)


def _groups(samples: list[list[Sample]], name: str, seed: int) -> tuple[Group, ...]:
    parts: dict[str, list[int]] = {}
    for number, sample in enumerate(samples[0]):
        parts.setdefault(sample.groups.get(name, NO_GROUP), []).append(number)
    if set(parts) == {NO_GROUP}:
        known = sorted({key for sample in samples[0] for key in sample.groups})
        raise ConfigError(
            explain(f"no breakdown {name!r} of these items", ", ".join(known) or "none", "Choose one of these")
        )
    made = []
    for part, numbers in sorted(parts.items()):
        codes = codes_of([samples[0][number] for number in numbers])
        values = [scores([of_run[number] for number in numbers]) for of_run in samples]
        cells = [GroupCell(cluster_interval(values[0], codes, limits=SCORES, seed=seed), None)]
        for of_run in values[1:]:
            accuracy = cluster_interval(of_run, codes, limits=SCORES, seed=seed)
            delta = cluster_interval(of_run - values[0], codes, limits=DIFFERENCES, seed=seed)
            cells.append(GroupCell(accuracy, delta))
        made.append(Group(part, len(numbers), int(codes.max()) + 1, tuple(cells)))
    return tuple(made)


def _remarks(runs: Sequence[Run], summaries: Sequence[Summary]) -> list[str]:
    found, whole = [], summaries[0].costs["visual_tokens"]
    for run, one in zip(runs[1:], summaries[1:], strict=True):
        label, tokens = one.label, one.costs["visual_tokens"]
        if is_downsized(run.header) and whole and tokens and tokens >= whole:
            found.append(f"{label}: smaller pictures have no fewer tokens here: the model's processor resizes them.")
        places = place_differences(runs[0].header, run.header)
        if places:
            found.append(
                f"{label}: another {'; another '.join(places)}. Answers are compared; times of these must not be."
            )
    clusters = summaries[0].clusters
    if clusters < 20:
        found.append(f"Only {clusters} clusters: intervals over so few are rough.")
    return found
