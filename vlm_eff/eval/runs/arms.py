"""What a task is asked of: the bare model, plugins, and baselines that do not look at what they leave out."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vlm_eff.core.config import parse_spec
from vlm_eff.core.errors import ConfigError, InputError, explain
from vlm_eff.core.plugin import Plugin
from vlm_eff.core.registry import METHODS
from vlm_eff.eval.budgets import Sizes, reach
from vlm_eff.eval.runs.asking import Shows, ask, show
from vlm_eff.eval.runs.folder import Run
from vlm_eff.eval.stats.baselines import BLIND, DOWNSIZE
from vlm_eff.eval.subject import Subject
from vlm_eff.eval.tasks.item import Task
from vlm_eff.models.attach import attach
from vlm_eff.tokens import for_budget, uniform_grid

# budgets this near to one another share their baselines
_ALIKE = 0.02


@dataclass(frozen=True)
class Arm:
    """One way of asking a task.

    label:   how tables name it
    method, n_eq_asked: what was set to which budget, for tables of methods at equal budgets
    plugins: attached together; none is the bare model
    scale:   of the sides of every picture, for the baseline that shows smaller ones
    """

    label: str
    plugins: tuple[Plugin, ...] = ()
    method: str = ""
    n_eq_asked: float | None = None
    scale: float = 1.0

    @property
    def folder(self) -> str:
        """The label as a folder's name."""
        return re.sub(r"[^A-Za-z0-9._=-]+", "_", self.label).strip("_")

    @property
    def baseline(self) -> str | None:
        """Name of the baseline when no plugin is what it is."""
        return None if self.scale == 1 else DOWNSIZE

    def of(self, task: Task) -> Task:
        """The task as this arm shows it."""
        if self.scale == 1:
            return task
        smaller = [
            replace(item, media=tuple(replace(one, scale=one.scale * self.scale) for one in item.media))
            for item in task.items
        ]
        return replace(task, items=tuple(smaller))


BARE = Arm("bare", method="bare")


def sizes_for(subject: Subject, task: Task, video_as: Shows) -> Sizes:
    """Visual tokens of the first item that can be shown, and the decoder's layers.

    Raises:
        InputError: no item shows anything, or none can be opened.
    """
    for item in task.items:
        shown = show(item, task.sampling, video_as)
        if shown.row is not None and item.media:
            with attach(subject.model, uniform_grid(keep_ratio=1.0)) as handle:
                ask(subject, [shown.row], handle, 1)
                report = handle.stats().last
            if report is not None:
                return Sizes(round(report.visual_tokens), len(report.visual_per_layer))
    accepted = "a task with one picture or video that can be opened"
    raise InputError(explain(f"no item of {task.name} shows anything", accepted, "Check the data set"))


def at_shares(
    specs: Sequence[str], shares: Sequence[float], sizes: Sizes, *, baselines: bool = False
) -> tuple[list[Arm], dict[str, str]]:
    """Each method at each share of the visual tokens (averaged over layers), and why some cannot be.

    specs:     methods, with those of their arguments that are not set by the share, such as "v2drop:schedule=paper"
    baselines: the blind ones at the same shares as well

    Raises:
        ConfigError: an unknown method, or a share that is none.
    """
    made, unreachable = [], {}
    wanted = [*specs, *(name for name in BLIND if name not in specs)] if baselines else specs
    for share in shares:
        if not 0 < share < 1:
            raise ConfigError(explain(f"share {share:g}", "above 0 and below 1", "Give the part of the tokens to keep"))
        n_eq = round(share * sizes.visual_tokens)
        if baselines:
            made.append(_downsized(n_eq, share))
        for spec in wanted:
            method, fixed = parse_spec(spec)
            METHODS.get(method)
            label = f"{spec} @ {n_eq:g}"
            try:
                plugin = _at_budget(method, n_eq, sizes, fixed) if fixed else reach(method, n_eq, sizes)
            except ConfigError as error:
                unreachable[label] = str(error)
                continue
            made.append(Arm(label, (plugin,), spec, n_eq))
    return made, unreachable


def baselines_for(runs: Sequence[Run], sizes: Sizes, seeds: int = 1) -> tuple[list[Arm], dict[str, str]]:
    """Baselines with the tokens, or the cache entries, that the runs really used, and why some cannot be.

    seeds: random baselines of each budget
    """
    arms: dict[str, Arm] = {}
    unreachable: dict[str, str] = {}
    for share in _apart(_mean(run, "n_eq") / max(_mean(run, "visual_tokens"), 1e-9) for run in runs if _drops(run)):
        n_eq = round(share * sizes.visual_tokens)
        for seed in range(seeds):
            arms |= _blind("random_drop", n_eq, sizes, unreachable, seed)
        for method in BLIND[1:]:
            arms |= _blind(method, n_eq, sizes, unreachable, 0)
        smaller = _downsized(n_eq, share)
        arms[smaller.label] = replace(smaller, n_eq_asked=None)
    for share in _apart(_mean(run, "kv_bytes_ratio") for run in runs if not _drops(run)):
        for seed in range(seeds):
            label = f"random_evict @ {share:.0%}" + (f" seed {seed}" if seed else "")
            plugin = METHODS.get("random_evict").make(keep_ratio=round(share, 4), seed=seed)
            arms[label] = Arm(label, (plugin,), "random_evict")
    return list(arms.values()), unreachable


def _downsized(n_eq: float, share: float) -> Arm:
    # tokens go with the area
    return Arm(f"{DOWNSIZE} @ {n_eq:g}", (), DOWNSIZE, n_eq, math.sqrt(share))


def _blind(method: str, n_eq: float, sizes: Sizes, unreachable: dict[str, str], seed: int) -> dict[str, Arm]:
    label = f"{method} @ {n_eq:g}" + (f" seed {seed}" if seed else "")
    try:
        drawn = {"seed": seed} if method == "random_drop" else {}
        plugin = _at_budget(method, n_eq, sizes, drawn)
    except ConfigError as error:
        unreachable[label] = str(error)
        return {}
    return {label: Arm(label, (plugin,), method)}


def _at_budget(method: str, n_eq: float, sizes: Sizes, fixed: dict[str, Any]) -> Plugin:
    return for_budget(method, n_eq=n_eq, visual_tokens=sizes.visual_tokens, num_layers=sizes.num_layers, **fixed)


def _drops(run: Run) -> bool:
    """Whether the run used fewer visual tokens than there were; a plugin of the cache alone does not."""
    return _mean(run, "n_eq") < _mean(run, "visual_tokens") * (1 - _ALIKE)


def _mean(run: Run, cost: str) -> float:
    found = [float(one.costs[cost]) for one in run.samples.values() if cost in one.costs]
    return sum(found) / len(found) if found else 0.0


def _apart(shares: Iterable[float]) -> list[float]:
    """Shares of a run that saved something, without those that are nearly another one."""
    kept: list[float] = []
    for share in shares:
        if 0 < share < 1 - _ALIKE and all(abs(share - one) > _ALIKE for one in kept):
            kept.append(share)
    return kept
