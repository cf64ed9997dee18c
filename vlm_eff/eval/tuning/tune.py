"""Tuning from end to end: split the items, search on one part, judge the best on the other, write it down."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from vlm_eff.core.errors import ConfigError, InputError, explain
from vlm_eff.core.recipe import Recipe
from vlm_eff.eval.compare import time_first_token
from vlm_eff.eval.measure import PairedTimes
from vlm_eff.eval.stats.interval import Interval, cluster_codes, cluster_interval
from vlm_eff.eval.stats.paired import DIFFERENCES
from vlm_eff.eval.subject import Subject
from vlm_eff.eval.tasks.item import Item, Task
from vlm_eff.eval.tuning.budget import Budget, Costs, Probe
from vlm_eff.eval.tuning.questions import Questions
from vlm_eff.eval.tuning.search import Candidate, search
from vlm_eff.models.attach import attach
from vlm_eff.recipes.preset import Preset
from vlm_eff.recipes.search_space import Space
from vlm_eff.reference.machine import describe_device, package_versions

# of the bare model's costs, by which held-out items may exceed a limit
_ROUNDING = 0.02


@dataclass(frozen=True)
class TuneSettings:
    """How a tuning is done.

    max_drop: largest loss of accuracy on the held-out items, in points from 0 to 1
    trials:   candidates asked; calibration, runoff, validation: items of each part, whole clusters, about as many
    finalists: best candidates of the search, among which the items of the run-off choose: the best of many on few items
              is lucky as well. No run-off with `runoff` 0
    pairs:    timed pairs of the first token with what was found; 0 times nothing
    """

    budget: Budget
    max_drop: float = 0.01
    trials: int = 40
    calibration: int = 100
    runoff: int = 200
    finalists: int = 8
    validation: int = 200
    batch_size: int = 32
    seed: int = 0
    pairs: int = 20

    def __post_init__(self) -> None:
        if not 0 <= self.max_drop <= 1:
            raise ConfigError(explain(f"max_drop={self.max_drop:g}", "from 0 to 1", "Give a share such as 1%"))
        if self.calibration < 1 or self.validation < 1 or self.runoff < 0:
            got = f"calibration={self.calibration}, runoff={self.runoff}, validation={self.validation}"
            raise ConfigError(explain(got, "1 item or more each; of the run-off 0 for none", "Give more items"))
        if self.finalists < 1:
            raise ConfigError(explain(f"finalists={self.finalists}", "1 or more", "Let more candidates run off"))


@dataclass(frozen=True)
class Judged:
    """One candidate on one part of the items, beside the bare model.

    delta: accuracy minus that of the bare model, with its 95 % interval over clusters
    same:  share of items with the bare model's answer; loyalty: see `Questions.loyalty`; costs: mean over the items
    """

    n: int
    bare: float
    accuracy: float
    delta: Interval
    same: float
    loyalty: float
    costs: Costs

    def to_dict(self) -> dict[str, Any]:
        """Plain dict for JSON."""
        return asdict(self) | {"costs": self.costs.to_dict()}


@dataclass(frozen=True)
class Tuned:
    """What tuning found.

    refused: proposals over budget, never asked; asked: candidates that were
    missed:  what of the budget the held-out items or the clock say is missed, by name, with the value; empty is well
    """

    task: Task
    model: str
    num_layers: int
    settings: TuneSettings
    best: Candidate
    asked: int
    refused: int
    calibration: Judged
    validation: Judged
    first_token: PairedTimes | None
    device: str

    @property
    def keeps(self) -> bool:
        """The held-out accuracy dropped by no more than was allowed."""
        # a sum of floats must not refuse a drop of exactly so much
        return self.validation.delta.value >= -self.settings.max_drop - 1e-9

    @property
    def missed(self) -> dict[str, float]:
        """What of the budget is missed on the held-out items, or by the clock, with the value that was measured.

        Costs are searched on one question of middle length; others may spend a little more.
        """
        costs, budget = self.validation.costs, self.settings.budget
        found = {name: getattr(costs, name) for name, excess in costs.over(budget).items() if excess > _ROUNDING}
        if budget.ttft is not None and self.first_token is not None and self.first_token.ratio > budget.ttft:
            found["ttft"] = self.first_token.ratio
        return found

    def recipe(self) -> Recipe:
        """The plugins that were found, as `attach` takes them."""
        return self.preset().recipe()

    def preset(self, name: str = "tuned") -> Preset:
        """What is written: the plugins, what they were tuned for and on, and what was measured."""
        return Preset(name, self.best.plugins, self.num_layers, self.model, self.about())

    def about(self) -> dict[str, Any]:
        """Everything but the plugins, as plain values."""
        return {
            "task": {"name": self.task.name, "version": self.task.version, "digest": self.task.digest},
            "settings": asdict(self.settings) | {"budget": self.settings.budget.to_dict()},
            "schedule": self.best.params,
            "asked": self.asked,
            "refused_unasked": self.refused,
            "prompts": "cut before the words that ask" if self.settings.budget.kv is not None else "whole",
            "calibration": self.calibration.to_dict(),
            "validation": self.validation.to_dict(),
            "first_token": None if self.first_token is None else self.first_token.to_dict(),
            "missed": self.missed,
            "device": self.device,
            "packages": package_versions(),
            "date": datetime.now(UTC).date().isoformat(),
        }


def tune(
    subject: Subject,
    task: Task,
    settings: TuneSettings,
    *,
    journal: Path | None = None,
    methods: dict[str, tuple[str, ...]] | None = None,
    watch: Callable[[int, int, float], None] | None = None,
) -> Tuned:
    """Find the settings that meet a budget and keep the answers best.

    journal: file of the search, which goes on from there; methods: fields of `Space` that name methods, where not all
    are wanted; watch: see `search`

    Raises:
        InputError: too few items, items that cannot be opened, no gold answers, or nothing that meets the budget.
        ConfigError: settings that cannot be. CapabilityError: Optuna or scipy is not installed.
    """
    task.require_gold()
    sizes = (settings.calibration, settings.runoff, settings.validation)
    calibration, runoff, validation = split_items(task, sizes, settings.seed)
    budget, cut = settings.budget, settings.budget.kv is not None
    questions = Questions(subject, task, calibration, settings.batch_size, cut=cut)
    probe = Probe(subject, questions.first(), with_cache=cut)
    space = space_for(subject, probe, budget, methods)
    about = {"model": subject.name, "task": task.digest, "items": [item.id for item in calibration]}
    found = search(
        space,
        budget,
        probe,
        questions.loyalty,
        trials=settings.trials,
        seed=settings.seed,
        journal=journal,
        about=about,
        watch=watch,
    )
    best = found.best
    if runoff:
        more = Questions(subject, task, runoff, settings.batch_size, cut=cut)
        best = max(found.candidates[: settings.finalists], key=lambda one: _worth(more, one))
    held_out = Questions(subject, task, validation, settings.batch_size, cut=cut)
    times = None
    if settings.pairs:
        with attach(subject.model, *best.plugins) as handle:
            times = time_first_token(subject, handle, held_out.first(), settings.pairs, seed=settings.seed)
    return Tuned(
        task=task,
        model=subject.name,
        num_layers=space.num_layers,
        settings=settings,
        best=best,
        asked=len(found.candidates),
        refused=found.refused,
        calibration=judge(questions, calibration, best, settings.seed),
        validation=judge(held_out, validation, best, settings.seed),
        first_token=times,
        device=describe_device(subject.device),
    )


def _worth(questions: Questions, candidate: Candidate) -> tuple[float, float]:
    """Right answers first, which is what a user asks for; probabilities tell those apart that have as many."""
    return questions.answer(candidate.plugins).accuracy, questions.loyalty(candidate.plugins)


def space_for(
    subject: Subject, probe: Probe, budget: Budget, methods: dict[str, tuple[str, ...]] | None = None
) -> Space:
    """The candidates that a budget leaves for a model: no more tokens than its FLOPs pay for."""
    layers, visual, prompt = probe.sizes()
    shares = [] if budget.n_eq is None else [budget.n_eq]
    if "flops" in budget.limits:
        shares.append(probe.tokens_at(budget.limits["flops"]))
    bits = subject.model.dtype.itemsize * 8
    tokens = min(shares, default=None)
    chosen: dict[str, Any] = dict(methods or {})
    return replace(Space(layers, visual, prompt, bits, tokens, budget.kv), **chosen)


def judge(questions: Questions, items: Sequence[Item], candidate: Candidate, seed: int) -> Judged:
    """A candidate on items, in pairs with the bare model."""
    bare, made = questions.bare, questions.answer(candidate.plugins)
    assert made.costs is not None  # plugins are attached
    ids = [item.id for item in items]
    change = np.array([made.scores[one] - bare.scores[one] for one in ids])
    codes = cluster_codes([item.cluster or item.id for item in items])
    return Judged(
        n=len(ids),
        bare=bare.accuracy,
        accuracy=made.accuracy,
        delta=cluster_interval(change, codes, limits=DIFFERENCES, seed=seed),
        same=sum(made.texts[one] == bare.texts[one] for one in ids) / len(ids),
        loyalty=questions.loyalty(candidate.plugins),
        costs=made.costs,
    )


def split_items(task: Task, sizes: Sequence[int], seed: int = 0) -> tuple[tuple[Item, ...], ...]:
    """Items of each part, such as those to search on and those to judge by: no picture or video is in two.

    sizes: items of each part, or a few more, because clusters stay whole; 0 leaves a part empty
    Clusters are taken in an order drawn from the seed until there are as many items as were asked for.

    Raises:
        InputError: not enough items for all.
    """
    clusters: dict[str, list[Item]] = {}
    for item in task.items:
        clusters.setdefault(item.cluster or item.id, []).append(item)
    drawn = iter(sorted(clusters, key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).digest()))
    parts: list[tuple[Item, ...]] = []
    for size in sizes:
        part: list[Item] = []
        while len(part) < size:
            name = next(drawn, None)
            if name is None:
                wanted = " + ".join(map(str, sizes))
                got = f"{len(task.items)} items of {len(clusters)} pictures or videos for {wanted}"
                raise InputError(explain(got, "as many items as all parts need", "Ask for fewer, or give more data"))
            part += clusters[name]
        parts.append(tuple(part))
    return tuple(parts)
