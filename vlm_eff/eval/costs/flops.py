"""FLOPs of a prompt and of a decode step: counted, and by the cost model."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList

from vlm_eff.core.errors import VlmEffError
from vlm_eff.core.handle import Handle
from vlm_eff.core.report import Stats
from vlm_eff.eval.subject import Subject
from vlm_eff.models.adapter import Adapter, adapter_for
from vlm_eff.models.attach import attach
from vlm_eff.models.cost import PartFlops, prefill_flops
from vlm_eff.models.flops import CountFlops
from vlm_eff.tokens import tome, uniform_grid


class _EachCall:
    """Takes what was counted whenever a token is about to be chosen: one call of the model each."""

    def __init__(self, counter: CountFlops) -> None:
        self._counter = counter
        self.calls: list[PartFlops] = []

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        self.calls.append(self._counter.take())
        return scores


def flops_of(subject: Subject, inputs: Any, handle: Handle | None, new_tokens: int) -> dict[str, Any]:
    """FLOPs of all rows: of the prompt and of the last decode step, each `measured` and `analytic`, by part.

    Counting slows a run down: nothing is timed here. The reports of the handle are reset. `overhead` is what plugins do
    for themselves, in the prompt and in all decode steps together; no cost model foresees it. Parts of the tower are
    None in `analytic` where no report tells its tokens, `step` is None with one new token.
    """
    adapter = adapter_for(subject.model)
    if handle is not None:
        handle.reset()
    counted = _count(subject, adapter, inputs, new_tokens)
    stats = _bare_stats(subject, inputs, new_tokens) if handle is None else handle.stats()
    steps = counted[1:]
    return {
        "prefill": {"measured": _whole(counted[0]), "analytic": _analytic(adapter, stats, bare=handle is None)},
        "step": {
            "measured": {"decoder": steps[-1].decoder, "head": steps[-1].head, "overhead": steps[-1].overhead},
            "analytic": {"decoder": stats.step_flops_bare if handle is None else stats.step_flops},
        }
        if steps
        else None,
        "overhead": counted[0].overhead + sum(step.overhead for step in steps),
    }


def _count(subject: Subject, adapter: Adapter, inputs: Any, new_tokens: int) -> list[PartFlops]:
    with torch.inference_mode(), CountFlops(adapter) as counter:
        watch = _EachCall(counter)
        subject.model.generate(
            **inputs,
            min_new_tokens=new_tokens,
            max_new_tokens=new_tokens,
            do_sample=False,
            num_beams=1,
            logits_processor=LogitsProcessorList([watch]),
        )
    return watch.calls


def _bare_stats(subject: Subject, inputs: Any, new_tokens: int) -> Stats:
    """Sizes of a bare run, by plugins that keep everything; the tower's where it can carry one."""
    nothing = (uniform_grid(keep_ratio=1.0), tome(r=0))
    try:
        handle = attach(subject.model, *nothing)
    except VlmEffError:
        handle = attach(subject.model, nothing[0])
    with handle, torch.inference_mode():
        subject.model.generate(**inputs, min_new_tokens=new_tokens, max_new_tokens=new_tokens, do_sample=False)
    return handle.stats()


def _analytic(adapter: Adapter, stats: Stats, *, bare: bool) -> dict[str, float | None]:
    if stats.last is None:
        return {}
    said: dict[str, float | None] = dict(_whole(prefill_flops(adapter, stats.last, stats.towers, bare=bare)))
    del said["overhead"]
    if not stats.towers:
        said |= dict.fromkeys(("blocks", "embedding", "projector", "total"), None)
    return said


def _whole(parts: PartFlops) -> dict[str, float]:
    return asdict(parts) | {"total": parts.total}
