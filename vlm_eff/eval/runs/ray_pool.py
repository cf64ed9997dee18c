"""The same run by a pool of Ray Data workers, on one machine or many: it takes up what `run_task` began, and back.

Workers share machines: how long a run takes says what a pool gets done, and nothing of the time a model needs.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from vlm_eff.core.errors import CapabilityError, ConfigError, explain
from vlm_eff.core.plugin import Plugin
from vlm_eff.eval.runs.folder import SAMPLES, Header, Run, Sample, SampleWriter, read_run
from vlm_eff.eval.runs.opening import begin, check_same, rest_of
from vlm_eff.eval.runs.ray_worker import PoolWorker
from vlm_eff.eval.runs.run import RunSettings, task_of
from vlm_eff.eval.subject import Subject
from vlm_eff.eval.tasks.item import Task


def run_with_ray(
    load: Callable[[], Subject],
    task: Task,
    plugins: Sequence[Plugin],
    folder: Path,
    *,
    workers: int = 2,
    cpus: float = 1.0,
    gpus: float = 0.0,
    specs: Sequence[str] = (),
    settings: RunSettings | None = None,
    watch: Callable[[int, int], None] | None = None,
) -> Run:
    """What `run_task` does, each batch by whichever worker is free: the same lines, in any order.

    load: called once in each worker; this process holds no model. A Ray that runs is used, else one is started for it
    cpus: of each worker, and its threads; gpus: of each worker, 0.5 lets two share one, 0 hides none from it
    watch: called with items done and items in all, after each batch

    Raises:
        CapabilityError: Ray Data is missing.
        ConfigError: fewer than one worker, or no machine that has what one takes.
        InputError: as `run_task`; also a worker whose model, machine or packages are others than those of the run.
        Exception: what the model or a plugin raises; RuntimeError where a worker died: nothing is tried again. Lines
            that came stay, and the same call or `run_task` goes on from there.
    """
    try:
        import ray
        import ray.data
    except ImportError as error:
        got, do = f"Ray Data cannot be imported ({error})", 'Run: pip install "vlm-eff[ray]"'
        raise CapabilityError(explain(got, "an installation with ray[data]", do)) from None
    settings = settings or RunSettings()
    task = task_of(task, settings)
    rest = rest_of(folder, task, settings.batch_size)
    finished = rest.finished
    # where nothing is left, a worker still says whether the folder holds this run
    firsts = [batch[0].id for batch in rest.left] or [""]
    # what a library starts reports to nobody, unless the user has said otherwise
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    with ExitStack() as stack:
        if not ray.is_initialized():
            stack.enter_context(ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR))
        work = ray.put((load, task, tuple(plugins), specs, settings))
        header: Header | None = None
        for own, samples in stack.enter_context(closing(_made(work, firsts, workers, cpus, gpus))):
            if header is None:
                begin(folder, own)
                header, writer = own, stack.enter_context(SampleWriter(folder / SAMPLES))
                # read once no other process can write
                done = read_run(folder).samples.keys()
            check_same(header, own, "another worker has a run")
            new = [sample for sample in samples if sample.id not in done]
            writer.add(new)
            finished += len(new)
            if watch is not None:
                watch(finished, rest.total)
    return read_run(folder)


def _made(
    work: Any, firsts: list[str], workers: int, cpus: float, gpus: float
) -> Generator[tuple[Header, list[Sample]]]:
    """What workers make of batches, each named by its first item's id, as they finish."""
    import ray

    has = [{name: node["Resources"].get(name, 0) for name in ("CPU", "GPU")} for node in ray.nodes() if node["Alive"]]
    if workers < 1 or not any(one["CPU"] >= cpus and one["GPU"] >= gpus for one in has):
        # Ray would wait without end for a machine that has so much
        got = f"workers={workers}, each with cpus={cpus} and gpus={gpus}"
        raise ConfigError(explain(got, f"one or more, none with more than a machine has: {has}", "Give other numbers"))
    # a block goes to one worker: a row each
    asked = ray.data.from_items([{"first": first} for first in firsts], override_num_blocks=len(firsts)).map_batches(
        PoolWorker,
        fn_constructor_args=(work,),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=workers),
        num_cpus=cpus,
        num_gpus=gpus,
    )
    asked.context.raise_original_map_exception = True
    asked.context.enable_progress_bars = asked.context.print_on_execution_start = False
    try:
        for came in asked.iter_batches(batch_size=None, prefetch_batches=0):
            for header, samples in map(json.loads, came["made"]):
                yield Header(**header), [Sample(**sample) for sample in samples]
    except ray.exceptions.RayTaskError as error:
        # what the worker raised, with its notes
        raise error.cause from error
