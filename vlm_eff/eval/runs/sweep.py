"""Several arms on several tasks: a folder a task, in it a run an arm, and one record of all of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from vlm_eff.eval.budgets import Sizes
from vlm_eff.eval.record import Record
from vlm_eff.eval.runs.arms import BARE, Arm, at_shares, baselines_for, sizes_for
from vlm_eff.eval.runs.asking import shows
from vlm_eff.eval.runs.first_token import timed
from vlm_eff.eval.runs.folder import Run
from vlm_eff.eval.runs.plan import Shard
from vlm_eff.eval.runs.records import sweep_record
from vlm_eff.eval.runs.run import RunSettings, run_task
from vlm_eff.eval.subject import Subject
from vlm_eff.eval.tasks.item import Task

Watch = Callable[[int, int], None]
# given task and arm, a place to tell how far it is
Watching = Callable[[str, str], AbstractContextManager[Watch | None]]


@dataclass(frozen=True)
class Asked:
    """A task, and how many of its items are asked; None asks all."""

    task: Task
    limit: int | None = None


@dataclass(frozen=True)
class Wanted:
    """What a sweep asks beside the bare model.

    arms:      plugins, each with its own settings
    methods:   methods to be set to each of `shares`, parts of the visual tokens averaged over layers
    baselines: blind baselines at the shares, and at what each of `arms` really used; seeds: random ones at each
    pairs:     timed pairs of the first token, of the first task's first item; 0 times nothing
    """

    arms: tuple[Arm, ...] = ()
    methods: tuple[str, ...] = ()
    shares: tuple[float, ...] = ()
    baselines: bool = True
    seeds: int = 1
    pairs: int = 0


class Sweep:
    """Asks every arm of every task what has no line yet, in one process or in this process's part of several.

    runs: by task and arm's label, as far as they were asked
    """

    def __init__(
        self,
        subject: Subject,
        asked: Sequence[Asked],
        folder: Path,
        settings: RunSettings | None = None,
        shard: Shard | None = None,
        watching: Watching = lambda task, arm: nullcontext(),
    ) -> None:
        self._subject, self._asked, self._folder = subject, asked, folder
        self._settings, self._shard, self._watching = settings or RunSettings(), shard or Shard(), watching
        self.runs: dict[str, dict[str, Run]] = {one.task.name: {} for one in asked}

    def ask(self, wanted: Wanted) -> Record | None:
        """Ask everything; the record, or None in a process that does a part: whoever is last sums up by asking again.

        Raises:
            ConfigError: an unknown method, or a share that is none.
            InputError: a folder with something else in it; see `run_task`, also for what a broken plugin raises.
        """
        arms, unreachable = [BARE, *wanted.arms], dict[str, str]()
        if wanted.methods:
            found, missing = at_shares(wanted.methods, wanted.shares, self._sizes, baselines=wanted.baselines)
            arms += found
            unreachable |= missing
        self._run(arms)
        if not all(run.finished for runs in self.runs.values() for run in runs.values()):
            return None
        if wanted.baselines and wanted.arms:
            runs = self.runs[self._asked[0].task.name]
            found, missing = baselines_for([runs[arm.label] for arm in wanted.arms], self._sizes, wanted.seeds)
            known = {arm.label for arm in arms}
            found = [arm for arm in found if arm.label not in known]
            self._run(found)
            arms += found
            unreachable |= missing
            if not all(run.finished for runs in self.runs.values() for run in runs.values()):
                return None
        if self._shard.rank:
            return None
        times = timed(self._subject, self._asked[0].task, arms, wanted.pairs) if wanted.pairs else {}
        about = {
            "visual_tokens": self._sizes.visual_tokens,
            "layers": self._sizes.num_layers,
            "timed_pairs": wanted.pairs,
        }
        return sweep_record(arms, self.runs, times, unreachable, about)

    @cached_property
    def _sizes(self) -> Sizes:
        return sizes_for(self._subject, self._asked[0].task, shows(self._subject, self._settings.video_as))

    def _run(self, arms: Sequence[Arm]) -> None:
        for asked in self._asked:
            for arm in arms:
                with self._watching(asked.task.name, arm.label) as watch:
                    self.runs[asked.task.name][arm.label] = run_task(
                        self._subject,
                        arm.of(asked.task),
                        arm.plugins,
                        self._folder / asked.task.name / arm.folder,
                        specs=(arm.label,) if arm.plugins else (),
                        settings=replace(self._settings, baseline=arm.baseline, limit=asked.limit),
                        shard=self._shard,
                        watch=watch,
                    )
