"""All costs of one call."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from vlm_eff.core.handle import Handle
from vlm_eff.eval.costs.costs import Costs
from vlm_eff.eval.costs.energy import energy_of
from vlm_eff.eval.costs.flops import flops_of
from vlm_eff.eval.costs.memory import peak_memory
from vlm_eff.eval.costs.watch import Clock, Timed, run_timed, synchronise
from vlm_eff.eval.subject import Subject
from vlm_eff.models.adapter import adapter_for
from vlm_eff.models.cache_bytes import cache_bytes
from vlm_eff.models.seams import entering


def measure_call(
    subject: Subject,
    inputs: Any,
    handle: Handle | None = None,
    new_tokens: int = 16,
    *,
    prepare: Callable[[], Any] | None = None,
    itl: bool = False,
    flops: bool = True,
    energy: bool = False,
    clock: Clock = time.perf_counter,
) -> Costs:
    """Measure one call: `new_tokens` new tokens behind `inputs`, forced, greedy; each kind of cost in a run of its own.

    handle:  of the plugins on the subject's model, whose reports are reset; None for the bare model
    prepare: makes the inputs from pictures and text, to time the processor with; without, `ttft_e2e_ms` is None
    itl:     time every token, in a run of its own; flops: count FLOPs; energy: two seconds of repeated runs
    The first run is thrown away. One run is no comparison: times of a busy machine swing, see `bench.py` for pairs.

    Raises:
        ConfigError: less than one new token.
    """
    run_timed(subject, inputs, 1, clock=clock)
    if handle is not None:
        handle.reset()
    held: list[Timed] = []
    peak = peak_memory(subject, lambda: held.append(run_timed(subject, inputs, new_tokens, clock=clock)))
    made = held[0]
    layers = cache_bytes(made.output.past_key_values)
    tokens, n_eq = _tokens(subject, inputs, handle)
    rows, prompt = inputs["input_ids"].shape
    vision, prefill = _phases(subject, inputs, clock)
    joules: float | None = None
    reason: str | None = "not asked for"
    if energy:
        joules, reason = energy_of(lambda: run_timed(subject, inputs, new_tokens), subject.device)
    behind = made.last - made.first
    return Costs(
        batch=rows,
        prompt_tokens=prompt,
        output_tokens=made.tokens,
        ttft_ms=made.first * 1e3,
        e2e_ms=made.last * 1e3,
        tpot_ms=None if made.per_token is None else made.per_token * 1e3,
        ttft_e2e_ms=None if prepare is None else _from_pictures(subject, prepare, clock) * 1e3,
        vision_ms=vision * 1e3,
        prefill_ms=prefill * 1e3,
        itl_ms=_gaps(subject, inputs, new_tokens, clock) if itl and new_tokens > 1 else None,
        prefill_tok_s=rows * prompt / made.first,
        decode_tok_s=rows * (made.tokens - 1) / behind if made.tokens > 1 and behind > 0 else None,
        request_s=rows / made.last,
        peak_mem_bytes=peak,
        kv_bytes=sum(layers.physical),
        kv_bytes_logical=sum(layers.logical),
        kv_bytes_per_layer=layers.physical,
        tokens=tokens,
        n_eq=n_eq,
        flops=flops_of(subject, inputs, handle, new_tokens) if flops else None,
        energy_j=joules,
        energy_reason=reason,
    )


def _phases(subject: Subject, inputs: Any, clock: Clock) -> tuple[float, float]:
    """Seconds before and behind the decoder's first layer; waiting there for a GPU costs a little of both."""
    entered: list[float] = []

    def note() -> None:
        if not entered:
            synchronise(subject.device)
            entered.append(clock())

    with entering(adapter_for(subject.model).decoder, note):
        synchronise(subject.device)
        started = clock()
        timed = run_timed(subject, inputs, 1, clock=clock)
    vision = entered[0] - started
    return vision, max(timed.first - vision, 0.0)


def _from_pictures(subject: Subject, prepare: Callable[[], Any], clock: Clock) -> float:
    started = clock()
    inputs = prepare()
    synchronise(subject.device)
    prepared = clock() - started
    return prepared + run_timed(subject, inputs, 1, clock=clock).first


def _gaps(subject: Subject, inputs: Any, new_tokens: int, clock: Clock) -> dict[str, Any]:
    gaps = [gap * 1e3 for gap in run_timed(subject, inputs, new_tokens, each=True, clock=clock).gaps]
    return {f"p{share}": float(np.percentile(gaps, share)) for share in (50, 95, 99)} | {"all": gaps}


def _tokens(subject: Subject, inputs: Any, handle: Handle | None) -> tuple[dict[str, Any], float]:
    """What became of the tokens of the prompt, and n_eq; of a bare model all of them stay."""
    adapter, ids = adapter_for(subject.model), inputs["input_ids"]
    visual = torch.isin(ids, torch.tensor((*adapter.tokens, *adapter.video_tokens), device=ids.device))
    mask = inputs.get("attention_mask")
    real = ids.numel() if mask is None else int(mask.sum())
    rows, entered = len(ids), int(visual.sum())
    told: dict[str, Any] = {"vision_in": entered / rows, "text": (real - entered) / rows}
    stats = None if handle is None else handle.stats()
    merged = 0 if stats is None else sum(sum(run.tokens) - sum(run.left) for run in stats.towers)
    report = None if stats is None else stats.last
    kept = (entered / rows,) * adapter.num_layers if report is None else report.visual_per_layer
    n_eq = entered / rows if report is None else report.n_eq
    return told | {"kept_per_layer": list(kept), "merged": merged / rows}, n_eq
