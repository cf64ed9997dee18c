"""A task, asked item by item of a model with or without plugins, written down as it goes.

Batches are the same whenever and by however many processes a run is done, and each is seeded by itself: a run that was
killed and taken up again has the lines of one that was not.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import torch

from vlm_eff.core.config import to_dict
from vlm_eff.core.errors import ConfigError, InputError, explain
from vlm_eff.core.handle import Handle
from vlm_eff.core.plugin import Plugin
from vlm_eff.eval.metrics import METRICS, Score
from vlm_eff.eval.runs.asking import Answer, Shown, Shows, ask, show, shows
from vlm_eff.eval.runs.folder import SAMPLES, Header, Run, Sample, SampleWriter, read_run
from vlm_eff.eval.runs.opening import agree, begin, rest_of
from vlm_eff.eval.runs.plan import Shard, limited
from vlm_eff.eval.subject import Subject
from vlm_eff.eval.tasks.item import Item, Task
from vlm_eff.models.attach import attach
from vlm_eff.reference.machine import describe_device, package_versions


@dataclass(frozen=True)
class RunSettings:
    """How a task is asked.

    batch_size: items a batch; answers may differ in the last bits of logits between batch sizes, so it is noted
    limit:      items, spread evenly over the task; None asks all
    seed:       of whatever draws; decoding is greedy
    video_as:   "video", "pictures" (each frame one picture), or "auto": videos where the processor takes them
    baseline:   name of a baseline that changes the items instead of attaching a plugin, such as "downsize"
    """

    batch_size: int = 16
    limit: int | None = None
    seed: int = 0
    video_as: Shows | Literal["auto"] = "auto"
    baseline: str | None = None


def run_task(
    subject: Subject,
    task: Task,
    plugins: Sequence[Plugin],
    folder: Path,
    *,
    specs: Sequence[str] = (),
    settings: RunSettings | None = None,
    shard: Shard | None = None,
    watch: Callable[[int, int], None] | None = None,
) -> Run:
    """Ask every item of a task that has no line in `folder` yet.

    plugins: attached together; none asks the bare model. specs: how they were written, for tables
    shard:   the part of the batches that this process asks; None asks all
    watch:   called with items done and items in all, of this process, after each batch

    Raises:
        InputError: the folder holds a run of something else, another process writes into it, or the task has no gold
            answers.
        Exception: whatever the model or a plugin raises: a run with a broken plugin fails, it does not score 0. Lines
            that are finished stay, and the same call goes on from there. Only an item whose media cannot be opened gets
            a line that says so, with status "error"; it counts as wrong.
    """
    settings, part = settings or RunSettings(), shard or Shard()
    task = task_of(task, settings)
    header = header_of(subject, task, plugins, specs, settings)
    agree(folder, header)
    rest = rest_of(folder, task, settings.batch_size, part)
    if not rest.left:
        begin(folder, header)
        return read_run(folder)
    finished = rest.finished
    name = SAMPLES if part.count == 1 else f"samples-{part.rank}.jsonl"
    # what cannot be attached leaves no folder behind
    with attach(subject.model, *plugins) if plugins else nullcontext() as handle:
        begin(folder, header)
        with SampleWriter(folder / name) as writer:
            for batch in rest.left:
                made = ask_batch(subject, task, batch, handle, header.settings)
                new = [sample for sample in made if sample.id not in rest.done]
                writer.add(new)
                finished += len(new)
                if watch is not None:
                    watch(finished, rest.total)
    return read_run(folder)


def task_of(task: Task, settings: RunSettings) -> Task:
    """The task with as many items as are asked; raises `InputError` for gold answers that are missing or unusable."""
    _check_gold(task)
    return limited(task, settings.limit, whole=task.whole)


def _check_gold(task: Task) -> None:
    """A gold answer that the metric cannot use is said before anything is asked."""
    task.require_gold()
    metric = METRICS.get(task.metric)
    for item in task.items:
        try:
            metric.check(item.gold)
        except InputError as error:
            raise InputError(f"item {item.id!r} of {task.name}: {error}") from None


def ask_batch(
    subject: Subject, task: Task, batch: Sequence[Item], handle: Handle | None, settings: dict[str, Any]
) -> list[Sample]:
    """A line for each item of a batch; raises whatever the model or a plugin raises, see `run_task`.

    handle: of the plugins on the model, None for the bare one; settings: of the run's header
    """
    shown = [show(item, task.sampling, settings["video_as"]) for item in batch]
    rows = [one.row for one in shown if one.row is not None]
    torch.manual_seed(settings["seed"])
    try:
        answers = iter(ask(subject, rows, handle, task.max_new_tokens) if rows else ())
    except Exception as error:
        error.add_note(f"while asking items {batch[0].id} to {batch[-1].id} of {task.name}; finished items are kept")
        raise
    return [_sample(task, one, None if one.row is None else next(answers)) for one in shown]


def _sample(task: Task, shown: Shown, answer: Answer | None) -> Sample:
    item = shown.item
    if answer is None:
        score, text, length, costs = Score(0.0, None, "error"), "", 0, {}
    else:
        score = METRICS.get(task.metric).score(answer.text, item.gold, item_id=item.id)
        text, length, costs = answer.text, answer.new_tokens, answer.costs
    return Sample(
        id=item.id,
        prompt=item.prompt,
        media=shown.media,
        gold=dict(item.gold),
        answer=text,
        score=score.value,
        parsed=score.parsed,
        status=score.status,
        new_tokens=length,
        cluster=item.cluster,
        groups=dict(item.groups),
        error=shown.error,
        costs=costs,
    )


def header_of(
    subject: Subject, task: Task, plugins: Sequence[Plugin], specs: Sequence[str], settings: RunSettings
) -> Header:
    """What `run.json` says of a run; task: as `task_of` gives it."""
    return Header(
        task={
            "name": task.name,
            "version": task.version,
            "metric": task.metric,
            "max_new_tokens": task.max_new_tokens,
            "sampling": None if task.sampling is None else task.sampling.to_dict(),
            "items": len(task.items),
            "digest": task.digest,
        },
        model=subject.name,
        plugins=[to_dict(plugin) for plugin in plugins],
        specs=list(specs) or [plugin.name for plugin in plugins],
        settings={
            **asdict(replace(settings, video_as=shows(subject, settings.video_as))),
            "dtype": str(subject.model.dtype).removeprefix("torch."),
            "attention": subject.model.config._attn_implementation,
        },
        device=describe_device(subject.device),
        packages=package_versions(),
        date=datetime.now(UTC).date().isoformat(),
    )


def owner_of(environment: dict[str, str] | None = None) -> Shard:
    """The shard of this process under torchrun, by RANK and WORLD_SIZE; the whole run elsewhere.

    Raises:
        ConfigError: values that are no numbers, or do not fit.
    """
    found = dict(os.environ) if environment is None else environment
    rank, count = found.get("RANK", "0"), found.get("WORLD_SIZE", "1")
    if not (rank.isdigit() and count.isdigit()):
        raise ConfigError(explain(f"RANK={rank!r}, WORLD_SIZE={count!r}", "whole numbers", "Start with torchrun"))
    return Shard(int(rank), int(count))
