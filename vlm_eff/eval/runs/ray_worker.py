"""One process of a pool: it holds the model with the plugins on it, and asks a batch a call. Start at `ray_pool.py`."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from functools import cached_property
from typing import Any

from vlm_eff.eval.runs.plan import batches
from vlm_eff.eval.runs.run import ask_batch, header_of
from vlm_eff.models.attach import attach


class PoolWorker:
    """Makes lines of batches, called by Ray Data.

    work: Ray's reference to what loads the model, the task, the plugins, their specs and the settings
    """

    def __init__(self, work: Any) -> None:
        self._work = work

    def __call__(self, rows: dict[str, Any]) -> dict[str, list[str]]:
        """For each id, as JSON: the header of this worker's run, and lines of the batch that begins with it, if one."""
        return {"made": [self._ask(str(first)) for first in rows["first"]]}

    # not in `__init__`: what is raised there comes back without its type
    @cached_property
    def _ask(self) -> Callable[[str], str]:
        import ray

        if ray.get_runtime_context().was_current_actor_reconstructed:
            # Ray Data starts a dead worker again without end
            raise RuntimeError("a worker died, of too little memory or a crash in native code; finished items are kept")
        load, task, plugins, specs, settings = ray.get(self._work)
        subject = load()
        header = header_of(subject, task, plugins, specs, settings)
        handle = attach(subject.model, *plugins) if plugins else None
        by_first = {batch[0].id: batch for batch in batches(task.items, settings.batch_size)}

        def ask(first: str) -> str:
            made = ask_batch(subject, task, by_first.get(first, ()), handle, header.settings)
            return json.dumps([asdict(header), [asdict(sample) for sample in made]])

        return ask
