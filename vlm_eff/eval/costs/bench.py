"""The bench: the bare model against plugins, in pairs, in one process, on inputs that lie ready.

Both arms are one handle: on, and paused. That pausing restores the bare model bit by bit is asserted for every case.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vlm_eff.core.errors import StateError, VlmEffError, explain
from vlm_eff.core.handle import Handle
from vlm_eff.core.plugin import AttentionSite, Plugin
from vlm_eff.eval.costs.cases import Case, Source
from vlm_eff.eval.costs.machine import attention_of
from vlm_eff.eval.costs.measure import measure_call
from vlm_eff.eval.costs.watch import Clock, run_timed
from vlm_eff.eval.measure import PairedTimes, paired_runs
from vlm_eff.eval.subject import Subject
from vlm_eff.models.attach import attach

BARE = "bare"


@dataclass(frozen=True)
class Timing:
    """How pairs are timed: pairs and warm-up of each arm, seed of their order; flops, energy, itl: measured as well."""

    pairs: int = 20
    warmup: int = 5
    seed: int = 0
    flops: bool = True
    energy: bool = False
    itl: bool = False
    clock: Clock = time.perf_counter


@dataclass(frozen=True)
class BenchRow:
    """One arm of one case.

    status: "ok", "refused" or "out of memory", with the reason
    costs:  of one call, see `Costs`; ratios: with the plugin / bare by quantity (ttft, tpot, e2e), {} for the bare row
    attention: of the model with the plugin; notes: what a reader has to know of the comparison
    """

    case: Case
    arm: str
    status: str = "ok"
    reason: str | None = None
    costs: dict[str, Any] | None = None
    ratios: dict[str, PairedTimes] = field(default_factory=dict)
    attention: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain dict for JSON."""
        return {
            "case": self.case.to_dict(),
            "arm": self.arm,
            "status": self.status,
            "reason": self.reason,
            "costs": self.costs,
            "ratios": {name: times.to_dict() for name, times in self.ratios.items()},
            "attention": self.attention,
            "notes": list(self.notes),
        }


def bench(
    subject: Subject,
    cases: Sequence[Case],
    plugins: Mapping[str, tuple[Plugin, ...]],
    *,
    source: Source | None = None,
    timing: Timing | None = None,
    told: Callable[[str], None] = lambda text: None,
) -> list[BenchRow]:
    """Measure the bare model and every arm on every case; a row for each, also for what was refused or did not fit.

    plugins: what is attached together, by the name of the arm; told: is told what comes next

    Raises:
        StateError: pausing does not restore the bare model bit by bit.
    """
    rows = []
    source, timing = source or Source(), timing or Timing()
    for case in cases:
        told(f"{BARE}, {_words(case)}")
        row, inputs = _guarded(case, BARE, lambda case=case: _bare(subject, case, source, timing))  # type: ignore[misc]
        rows.append(row)
        for name, together in plugins.items():
            if inputs is None:
                rows.append(BenchRow(case, name, row.status, row.reason))
                continue
            told(f"{name}, {_words(case)}")
            arm = _Arm(subject, case, name, together, inputs, timing)
            rows.append(_guarded(case, name, arm.measure)[0])
    return rows


@dataclass(frozen=True)
class _Arm:
    subject: Subject
    case: Case
    name: str
    plugins: tuple[Plugin, ...]
    inputs: Any
    timing: Timing

    def measure(self) -> tuple[BenchRow, Any]:
        timing, before, bare = self.timing, attention_of(self.subject), first_logits(self.subject, self.inputs)
        with attach(self.subject.model, *self.plugins) as handle:
            # refused combinations show here, before anything is timed
            first_logits(self.subject, self.inputs)
            with handle.paused():
                check_restored(bare, first_logits(self.subject, self.inputs))
            ratios = paired_runs(
                self._run,
                lambda: self._paused(handle),
                pairs=timing.pairs,
                warmup=timing.warmup,
                seed=timing.seed,
            )
            costs = _costs(self.subject, self.case, self.inputs, handle, timing)
            attention = attention_of(self.subject)
        return BenchRow(
            self.case, self.name, "ok", None, costs, ratios, attention, notes(handle.plugins, before, attention)
        ), None

    def _run(self) -> dict[str, float]:
        timed = run_timed(self.subject, self.inputs, self.case.new_tokens, clock=self.timing.clock)
        made = {"ttft": timed.first, "e2e": timed.last}
        return made if timed.per_token is None else made | {"tpot": timed.per_token}

    def _paused(self, handle: Handle) -> dict[str, float]:
        with handle.paused():
            return self._run()


def first_logits(subject: Subject, inputs: Any) -> Tensor:
    """Logits of the first new token [B, V]."""
    with torch.inference_mode():
        output = subject.model.generate(
            **inputs, max_new_tokens=1, do_sample=False, output_logits=True, return_dict_in_generate=True
        )
    logits: Tensor = output.logits[0]
    return logits


def check_restored(bare: Tensor, paused: Tensor) -> None:
    """Raise `StateError` unless the paused model gives the very logits of the bare one."""
    if not torch.equal(bare, paused):
        worst = float((bare.float() - paused.float()).abs().max())
        raise StateError(
            explain(
                f"a paused plugin whose model is off by {worst:.2e}",
                "the bare model, bit by bit",
                "Nothing was timed; report this with the model and the plugin",
            )
        )


def notes(plugins: Sequence[Plugin], bare: Mapping[str, str], attached: Mapping[str, str]) -> tuple[str, ...]:
    """What differs between the arms besides what the plugin is for."""
    said = [
        f"{part} attention: {attached.get(part)} with the plugin, {name} bare"
        for part, name in bare.items()
        if attached.get(part) != name
    ]
    own = sorted(plugin.name for plugin in plugins if any(isinstance(site, AttentionSite) for site in plugin.sites))
    return (*said, *(f"{name} attends by an operation of its own in some layers" for name in own))


def _bare(subject: Subject, case: Case, source: Source, timing: Timing) -> tuple[BenchRow, Any]:
    inputs = source.inputs(subject, case)
    costs = _costs(subject, case, inputs, None, timing, prepare=lambda: source.inputs(subject, case))
    return BenchRow(case, BARE, costs=costs, attention=attention_of(subject)), inputs


def _costs(
    subject: Subject,
    case: Case,
    inputs: Any,
    handle: Handle | None,
    timing: Timing,
    prepare: Callable[[], Any] | None = None,
) -> dict[str, Any]:
    options = {"itl": timing.itl, "flops": timing.flops, "energy": timing.energy}
    made = measure_call(subject, inputs, handle, case.new_tokens, prepare=prepare, clock=timing.clock, **options)
    return made.to_dict()


def _guarded(case: Case, arm: str, measure: Callable[[], tuple[BenchRow, Any]]) -> tuple[BenchRow, Any]:
    """A row also where memory does not suffice, or something is refused; a broken comparison is no row."""
    try:
        return measure()
    except StateError:
        raise
    except VlmEffError as error:
        return BenchRow(case, arm, "refused", str(error)), None
    except RuntimeError as error:
        # a CPU's allocator has no class of its own
        if not isinstance(error, torch.OutOfMemoryError) and "DefaultCPUAllocator" not in str(error):
            raise
        torch.cuda.empty_cache()
        return BenchRow(case, arm, "out of memory", str(error).splitlines()[0]), None


def _words(case: Case) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in case.to_dict().items() if value)
