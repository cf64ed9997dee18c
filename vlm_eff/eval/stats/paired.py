"""Two runs over the same items: what changed, how sure that is, and which items it was."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vlm_eff.eval.runs.folder import Sample
from vlm_eff.eval.stats.interval import Interval, cluster_interval
from vlm_eff.eval.stats.significance import Significance, mcnemar, significance
from vlm_eff.eval.stats.summary import codes_of, scores

# an item with a share of the points counts as right from here on, where right or wrong is asked
RIGHT = 0.5
DIFFERENCES = (-1.0, 1.0)


@dataclass(frozen=True)
class Part:
    """Accuracy over a part of the items, of the reference and of the run; None where the part is empty."""

    items: int
    reference: float | None
    accuracy: float | None


@dataclass(frozen=True)
class Vtc:
    """Accuracy apart by what smaller pictures do to the bare model (VTC-Bench).

    downsized: the run with smaller pictures, and its visual tokens
    hard:      items that it gets wrong, so that seeing less has to be made up for
    easy:      items that it gets right, which say little of a method
    """

    downsized: str
    n_eq: float | None
    hard: Part
    easy: Part


@dataclass(frozen=True)
class Paired:
    """A run beside its reference.

    delta:    accuracy of the run minus that of the reference, with its interval over clusters
    test:     p value of no difference; mcnemar: p value of McNemar's test where scores are 0 or 1, which takes
              items for independent, else None
    relative: accuracy of the run / of the reference, None where the latter is 0
    loyalty:  share of items with the same answer as the reference, apart from case and blanks; an item that could not
              be asked has none
    worse, better: ids of the items that went from right to wrong, and from wrong to right (right: half the points)
    vtc:      None without a run of smaller pictures
    """

    delta: Interval
    test: Significance
    mcnemar: float | None
    relative: float | None
    loyalty: float
    worse: tuple[str, ...]
    better: tuple[str, ...]
    vtc: Vtc | None = None


def pair(reference: Sequence[Sample], run: Sequence[Sample], *, vtc: Vtc | None = None, seed: int = 0) -> Paired:
    """Compare two lists of the same items in the same order."""
    before, after, codes = scores(reference), scores(run), codes_of(reference)
    both = list(zip(reference, run, strict=True))
    binary = bool((((before == 0) | (before == 1)) & ((after == 0) | (after == 1))).all())
    return Paired(
        delta=cluster_interval(after - before, codes, limits=DIFFERENCES, seed=seed),
        test=significance(before, after, codes, seed=seed),
        mcnemar=mcnemar(before, after) if binary else None,
        relative=float(after.mean() / before.mean()) if before.mean() else None,
        loyalty=sum(_same_answer(first, second) for first, second in both) / len(both),
        worse=tuple(first.id for first, second in both if is_right(first) and not is_right(second)),
        better=tuple(first.id for first, second in both if is_right(second) and not is_right(first)),
        vtc=vtc,
    )


def vtc_of(
    reference: Sequence[Sample], run: Sequence[Sample], downsized: Sequence[Sample], label: str, n_eq: float | None
) -> Vtc:
    """Split the items by whether a run with smaller pictures is right.

    Source: VTC-Bench, groups A (`hard`) and B (`easy`).
    """
    right = [is_right(sample) for sample in downsized]
    return Vtc(label, n_eq, _part(reference, run, [not one for one in right]), _part(reference, run, right))


def is_right(sample: Sample) -> bool:
    """True from half the points on."""
    return sample.score >= RIGHT


def _part(reference: Sequence[Sample], run: Sequence[Sample], inside: Sequence[bool]) -> Part:
    means = []
    for samples in (reference, run):
        found = [sample.score for sample, wanted in zip(samples, inside, strict=True) if wanted]
        means.append(sum(found) / len(found) if found else None)
    return Part(sum(inside), *means)


def _same_answer(first: Sample, second: Sample) -> bool:
    if "error" in (first.status, second.status):
        return False
    return first.answer.lower().split() == second.answer.lower().split()
