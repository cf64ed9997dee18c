"""The registry of tasks: what is read from where, how it is asked, and how the answers are scored.

Other packages offer tasks by an entry point of the group `vlm_eff.tasks` that names a `TaskSource`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from vlm_eff.core.errors import ConfigError, InputError, explain
from vlm_eff.core.registry import Registry
from vlm_eff.eval.metrics import METRICS
from vlm_eff.eval.tasks.item import Item, Task
from vlm_eff.video.sampling import Sampling

SHORT = "Answer the question using a single word or phrase."
SHORT_STYLES: Mapping[str, str] = {"short": "{question}\n" + SHORT, "plain": "{question}"}
# what a reader of files asks of its folder, and what a source that makes its own questions does without
NO_FOLDER = Path()


@dataclass(frozen=True)
class Request:
    """What a reader is asked for.

    folder: where the files are
    split:  one of the source's splits
    style:  one of the source's styles
    form:   the prompt of that style, with {question} and whatever else the source fills in
    """

    folder: Path
    split: str
    style: str
    form: str

    def ask(self, question: str, **parts: str) -> str:
        """The prompt of one question."""
        return self.form.format(question=question, **parts)


@dataclass(frozen=True)
class TaskSource:
    """How a task is made from local files, or from nothing.

    name:           of the task
    about:          one line: what is asked, and whose benchmark it is
    files:          what the folder holds, in words; "" where no folder is needed
    splits:         the first is read where none is named
    metric:         name in `vlm_eff.eval.metrics`
    read:           `read(request, **options)` yields the items; its options and their defaults are those of the task
    styles:         by name, the form of a prompt; the first is the benchmark's usual one
    version:        raised when the same file gives other items or prompts
    max_new_tokens: longest answer
    sampling:       which frames of a video are shown; None where there are no videos
    whole:          name of the group that an item belongs to, where the metric needs whole groups: no limit cuts one
    submission:     turns items and answers by item id into what the benchmark's server takes, or None
    """

    name: str
    about: str
    files: str
    splits: tuple[str, ...]
    metric: str
    read: Callable[..., Iterable[Item]] = field(repr=False)
    styles: Mapping[str, str] = field(default_factory=lambda: SHORT_STYLES)
    version: str = "1"
    max_new_tokens: int = 16
    sampling: Sampling | None = None
    whole: Callable[[Item], str] | None = field(default=None, repr=False)
    submission: Callable[[Sequence[Item], Mapping[str, str]], Any] | None = field(default=None, repr=False)

    @property
    def options(self) -> dict[str, Any]:
        """What `load` takes besides split and style, with defaults."""
        parameters = list(inspect.signature(self.read).parameters.values())[1:]
        return {parameter.name: parameter.default for parameter in parameters}

    def load(
        self,
        folder: str | Path | None = None,
        split: str | None = None,
        *,
        style: str | None = None,
        limit: int | None = None,
        frames: int | None = None,
        sampling: Sampling | None = None,
        metric: str | None = None,
        **options: Any,
    ) -> Task:
        """Read the task.

        Args:
            folder: where the files are; left out where the source needs none.
            split: one of `splits`; None is the first.
            style: one of `styles`; None is the first.
            limit: most items, from the first; None is all. Whole groups where the metric needs them (`whole`).
            frames: how many of a video are shown, chosen in the benchmark's way.
            sampling: which frames of a video are shown, instead of the benchmark's way and of `frames`.
            metric: another one than the benchmark's, such as "pope/official".
            options: of this task, see `options`.

        Raises:
            InputError: a folder or file that is missing, broken, or lacks a field.
            ConfigError: an unknown split, style, metric or option, or a limit below 1.
            CapabilityError: a parquet file without pyarrow.
        """
        self._check(folder, limit, options)
        METRICS.get(metric or self.metric)
        sampling = self._sampled(frames, sampling)
        split = _one_of(f"{self.name} with split", split, self.splits)
        style = _one_of(f"{self.name} with style", style, tuple(self.styles))
        request = Request(Path(folder) if folder is not None else NO_FOLDER, split, style, self.styles[style])
        items = self._limited(self.read(request, **options), limit)
        if not items:
            accepted = f"{self.files or 'a split with items'}; options {self.options or 'none'}"
            raise InputError(
                explain(f"split {split!r} of {self.name} has no item", accepted, "Check files and options")
            )
        chosen = {name: value for name, value in options.items() if value != self.options[name]}
        shown = {} if sampling is None else sampling.to_dict()
        extra = "".join(f" {name}={value}" for name, value in [*sorted(chosen.items()), *shown.items()])
        version = f"{self.version} split={split} style={style}{extra}"
        whole = self.whole is not None
        task = Task(self.name, version, metric or self.metric, items, self.max_new_tokens, sampling, whole)
        task.check_gold()
        return task

    def _check(self, folder: str | Path | None, limit: int | None, options: Mapping[str, Any]) -> None:
        if self.files and folder is None:
            raise InputError(explain(f"{self.name} without a folder", f"a folder with {self.files}", "Name the folder"))
        if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
            raise _refused(f"limit={limit!r}", "a whole number of at least 1, or None")
        for name in options:
            if name not in self.options:
                raise _refused(f"{self.name} has no option {name!r}", ", ".join(self.options) or "no option")

    def _sampled(self, frames: int | None, sampling: Sampling | None) -> Sampling | None:
        usual = self.sampling
        if usual is None and (frames, sampling) != (None, None):
            raise _refused(f"{self.name} with frames or sampling", "neither: this task shows no videos")
        if usual is None or frames is None or sampling is not None:
            return sampling or usual
        # some conventions take a number at most, and fewer of a short video
        return replace(usual, frames=frames) if usual.max_frames is None else replace(usual, max_frames=frames)

    def _limited(self, items: Iterable[Item], limit: int | None) -> tuple[Item, ...]:
        """The first items; of a group that the limit would cut, none, unless it is the only one."""
        if limit is None:
            return tuple(items)
        group = self.whole or (lambda item: item.id)
        taken: list[Item] = []
        for item in items:
            if len(taken) >= limit and group(item) != group(taken[-1]):
                break
            taken.append(item)
        if len(taken) > limit and group(taken[0]) != group(taken[-1]):
            last = group(taken[-1])
            taken = [item for item in taken if group(item) != last]
        return tuple(taken)


TASKS: Registry[TaskSource] = Registry("task")
BROKEN_TASKS: dict[str, str] = {}


def register(source: TaskSource) -> TaskSource:
    """Add a source to `TASKS` under its name."""
    TASKS.add(source.name, source)
    return source


def load_task_entry_points() -> None:
    """Import what third parties register (group `vlm_eff.tasks`); a broken one is remembered, never fatal."""
    for point in metadata.entry_points(group="vlm_eff.tasks"):
        if point.name in TASKS or point.name in BROKEN_TASKS:
            continue
        try:
            source = point.load()
            if not isinstance(source, TaskSource):
                raise TypeError(f"{type(source).__name__} is no TaskSource")
            register(replace(source, name=point.name))
        except Exception as error:
            BROKEN_TASKS[point.name] = f"{type(error).__name__}: {error}"


def all_tasks() -> list[TaskSource]:
    """Every source, of third parties too, by name."""
    load_task_entry_points()
    return [TASKS.get(name) for name in TASKS]


def load_task(name: str, folder: str | Path | None = None, split: str | None = None, **options: Any) -> Task:
    """Read a task by name; see `TaskSource.load`.

    Raises:
        ConfigError: no such task (the nearest names are said), split, style or option.
        InputError: a folder or file that is missing, broken, or lacks a field.
    """
    if name not in TASKS:
        load_task_entry_points()
    return TASKS.get(name).load(folder, split, **options)


def _one_of(what: str, got: str | None, accepted: tuple[str, ...]) -> str:
    if got is None:
        return accepted[0]
    if got not in accepted:
        raise _refused(f"{what} {got!r}", ", ".join(accepted))
    return got


def _refused(got: str, accepted: str) -> ConfigError:
    return ConfigError(explain(got, accepted, "Choose one of the accepted values"))
