"""A tuned preset against every untuned method at the same cost, on held-out items of the bundled model.

    python benchmarks/tuned.py [--budget flops=0.25] [--trials 40] [--items 300]

Writes benchmarks/results/tuned_bundled.json. Tuning sees scenes of the split `validation`, the comparison those of
`test`. Questions about relations are left out: the bundled model answers them by chance.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import vlm_eff
from vlm_eff.cli.output import say
from vlm_eff.core.config import to_dict
from vlm_eff.core.errors import ConfigError
from vlm_eff.core.plugin import Plugin
from vlm_eff.eval.budgets import Sizes, reach
from vlm_eff.eval.loading import load_subject, quiet_libraries
from vlm_eff.eval.record import Record
from vlm_eff.eval.stats.interval import cluster_codes, cluster_interval
from vlm_eff.eval.stats.paired import DIFFERENCES
from vlm_eff.eval.subject import Subject
from vlm_eff.eval.tasks import Task, load_task
from vlm_eff.eval.token_methods import budget_methods
from vlm_eff.eval.tuning.budget import Budget, Probe, parse_budget
from vlm_eff.eval.tuning.questions import Answered, Questions
from vlm_eff.eval.tuning.tune import Tuned, TuneSettings, tune
from vlm_eff.models.adapter import adapter_for
from vlm_eff.reference.machine import describe_device

RESULTS = Path(__file__).parent / "results"
_CHANCE = "relation"
_BATCH = 32
# put together with methods of the cache as well
_PAIRED = ("divprune", "pyramiddrop")


def scenes(split: str, count: int, first: int = 0) -> Task:
    """Questions of a split without those that the model cannot answer."""
    task = load_task("scenes", None, split=split, scenes=count, first=first)
    return replace(task, items=tuple(item for item in task.items if item.groups["family"] != _CHANCE))


def untuned(subject: Subject, probe: Probe, tuned: Tuned) -> tuple[dict[str, tuple[Plugin, ...]], dict[str, str]]:
    """Every token method by itself within the budget, and why some cannot be.

    Without a limit on the cache they get the tokens that the preset really has. With one they get as many as meet both
    limits, and the better ones are also put together with cache methods at default settings: two untuned methods, set
    by hand, the tokens to what the preset has and the eviction to the bytes that may be left.
    """
    layers, visual, prompt = probe.sizes()
    share, kv = tuned.validation.costs.n_eq, tuned.settings.budget.kv
    alone = share if kv is None else min(share, (kv * prompt - prompt + visual) / visual)
    made, missing = dict[str, tuple[Plugin, ...]](), dict[str, str]()
    for method in budget_methods(adapter_for(subject.model).name):
        try:
            made[method] = (reach(method, alone * visual, Sizes(visual, layers)),)
            if kv is not None and method in _PAIRED:
                tokens = reach(method, share * visual, Sizes(visual, layers))
                for cache in (
                    f"snapkv:keep_ratio={kv},window=4",
                    "kivi:bits=8,residual=32",
                    "kivi:bits=4,residual=32",
                    "kivi:bits=2,residual=32",
                ):
                    made[f"{method} + {cache}"] = (tokens, vlm_eff.plugin(cache))
        except ConfigError as error:
            missing[method] = str(error)
    return made, missing


def row(
    label: str, plugins: tuple[Plugin, ...], made: Answered, best: Answered, codes: Any, budget: Budget
) -> dict[str, Any]:
    """One arm: accuracy, costs, what of the budget it exceeds, and by how much the preset is above it, in pairs."""
    assert made.costs is not None
    change = np.array([best.scores[one] - made.scores[one] for one in made.scores])
    ahead = cluster_interval(change, codes, limits=DIFFERENCES)
    return {
        "label": label,
        "plugins": [to_dict(plugin) for plugin in plugins],
        "accuracy": made.accuracy,
        "costs": made.costs.to_dict(),
        "over": {name: excess for name, excess in made.costs.over(budget).items() if excess > 0},
        "preset_minus_this": [ahead.value, ahead.low, ahead.high],
    }


def main() -> None:
    """Tune, ask all arms, write the record."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--budget", default="flops=0.25")
    options.add_argument("--trials", type=int, default=40)
    options.add_argument("--calibration", type=int, default=96)
    options.add_argument("--runoff", type=int, default=300)
    options.add_argument("--items", type=int, default=300)
    options.add_argument("--first", type=int, default=0, help="number of the first scene of the comparison")
    options.add_argument("--journal", type=Path)
    options.add_argument("--output", type=Path, default=RESULTS / "tuned_bundled.json")
    wanted = options.parse_args()
    quiet_libraries()
    subject = load_subject(None)
    settings = TuneSettings(
        parse_budget(wanted.budget),
        trials=wanted.trials,
        calibration=wanted.calibration,
        runoff=wanted.runoff,
        validation=wanted.calibration,
        batch_size=_BATCH,
    )

    def watch(asked: int, trials: int, best: float) -> None:
        say(f"{asked}/{trials} best {best:.4f}")

    enough = scenes("validation", (2 * wanted.calibration + wanted.runoff) // 5)
    tuned = tune(subject, enough, settings, journal=wanted.journal, watch=watch)
    test = scenes("test", wanted.items // 6, wanted.first)
    items = test.items[: wanted.items]
    questions = Questions(subject, test, items, _BATCH, cut=settings.budget.kv is not None)
    probe = Probe(subject, questions.first(), with_cache=settings.budget.kv is not None)
    order = list(questions.bare.scores)
    clusters = {item.id: item.cluster for item in items}
    codes = cluster_codes([clusters[one] for one in order])
    best = questions.answer(tuned.best.plugins)
    assert best.costs is not None
    singles, missing = untuned(subject, probe, tuned)
    rows = []
    for name, plugins in singles.items():
        say(name)
        rows.append(row(name, plugins, questions.answer(plugins), best, codes, settings.budget))
    rows.sort(key=lambda one: -one["accuracy"])
    record = Record(
        task="scenes: a tuned preset against untuned methods at the same cost",
        task_version=test.version,
        model=subject.name,
        config={"tuned": tuned.about(), "preset": [to_dict(one) for one in tuned.best.plugins], "left out": _CHANCE},
        device=describe_device(subject.device),
        n=len(items),
        result={
            "bare": questions.bare.accuracy,
            "preset": {"accuracy": best.accuracy, "costs": best.costs.to_dict()},
            "untuned": rows,
            "unreachable": missing,
        },
    )
    record.write(wanted.output)


if __name__ == "__main__":
    main()
