"""Classifier-free guidance: both halves computed, or one of them and the other supplied from what is kept."""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from vlm_eff.core.denoise import DenoisePlugin, GuidanceSite, NoGuidance, Predict, Unguided
from vlm_eff.core.errors import CapabilityError, StateError, explain
from vlm_eff.core.handle import Undo
from vlm_eff.models.denoise.chain import Forward
from vlm_eff.models.denoise.halves import COND, UNCOND, Halves, Order
from vlm_eff.models.denoise.pipeline import Arguments
from vlm_eff.models.denoise.rows import Streams, take_call
from vlm_eff.models.denoise.runtime import GUIDANCE, GUIDANCE_INSIDE, DenoiseRuntime
from vlm_eff.models.denoise.state import Unit, UnitState
from vlm_eff.models.denoise.view import Call, UnitView

_UNIT = Unit("", "guidance")
_WHOLE, _HALF = "guidance_whole", "guidance_half"


@dataclass
class _Opened:
    """A step in which one of two calls was made: what it returned, and which branches were called so far."""

    step: int
    context: str | None
    latents: Tensor
    streams: Streams
    branches: list[int] = field(default_factory=list)


class GuidanceDriver:
    """Asks a plugin once a step whether both halves of the guidance are computed.

    Halves of one batch: the conditional one is computed, in a batch of half the rows. Two calls a step: the first is
    computed and the second is not; the pipeline decides which one comes first, and guidance can only be given up
    where it is the conditional one. Which calls belong together, and which half is which: see `halves.py`.

    Runs without guidance, and models with the guidance distilled into them, have nothing to leave out: they run as
    they are, and a whole run of that kind ends with the warning `NoGuidance`. The notes `guidance_whole` and
    `guidance_half` of a run count steps, without a first step of which it was not certain yet that it is guided.
    """

    def __init__(self, runtime: DenoiseRuntime, site: GuidanceSite, plugin: DenoisePlugin) -> None:
        self._runtime, self._site, self._plugin = runtime, site, plugin
        self._halves = Halves(runtime.denoising.pipe)
        self._order = Order(runtime.denoising.pipe)
        self.began()

    def install(self, undo: Undo) -> None:
        order = GUIDANCE_INSIDE if self._site.inside else GUIDANCE
        for module in self._runtime.denoising.denoisers.values():
            self._runtime.chains.around(module, self._link, undo, order=order)
        listeners = self._runtime.clock.listeners
        listeners.append(self._order.stepped)
        undo.push(lambda: listeners.remove(self._order.stepped))

    def began(self) -> None:
        """Forget the run before."""
        self._halves.reset()
        self._order.reset()
        self._opened: dict[str, _Opened] = {}
        self._sequence: dict[str, tuple[int, ...]] = {}
        self._last: dict[str, str] = {}
        self._calls = self._pairs = 0

    def ended(self) -> None:
        """Say so where a run had nothing to leave out; let go of tensors."""
        if self._calls and not self._pairs:
            warnings.warn(
                f"vlm_eff: {self._plugin.name} saved nothing of the guidance in this run of "
                f"{type(self._runtime.denoising.pipe).__name__}: it did not use classifier-free guidance. Set a "
                "guidance scale above 1; where guidance is distilled into the model, leave the plugin out.",
                NoGuidance,
                stacklevel=2,
            )
        self.began()

    # ---------------------------------------------------------------- which kind of call

    def _link(self, module: nn.Module, inner: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        call = self._runtime.call
        if call is None or not self._runtime.active:
            return inner(*args, **kwargs)
        self._calls += 1
        latents = Arguments(module, args, kwargs).latents
        if latents.shape != call.latents.shape:
            # a cache around us computes single rows
            return inner(*args, **kwargs)
        context = self._runtime.chains.context(module)
        certain = self._halves.certain(call, module, latents, context)
        if certain:
            return self._batch(call, latents, inner, args, kwargs)
        if certain is None:
            # both halves or two prompts: the next step tells
            return self._keep_halves(self._state(call, latents), call, inner(*args, **kwargs))
        opened = self._opened.get(call.denoiser)
        if opened is None or opened.step != call.step.index:
            return self._open(call, opened, latents, context, inner(*args, **kwargs))
        return self._second(call, opened, latents, context, lambda: inner(*args, **kwargs))

    def _state(self, call: Call, latents: Tensor, rows: int | None = None) -> UnitState:
        like = latents[: latents.shape[0] // 2 if rows is None else rows]
        return self._runtime.store.of((self._plugin.name, call.denoiser, "guidance", _UNIT), like)

    def _ask(self, call: Call, latents: Tensor, state: UnitState) -> Predict | Unguided | None:
        started = time.perf_counter()
        answer = self._plugin.at(self._site, UnitView(_UNIT, call, latents, state))
        self._runtime.ledger.now.deciding_ms += 1000 * (time.perf_counter() - started)
        whole = isinstance(answer, Predict) and answer.rows is None
        if answer is not None and not isinstance(answer, Unguided) and not whole:
            raise StateError(
                explain(
                    f"{self._plugin.name} answered {answer!r}", "Predict of all rows, Unguided or None", "Correct it"
                )
            )
        return answer

    def _count(self, call: Call, what: str) -> None:
        self._pairs += 1
        notes = self._runtime.ledger.now.notes
        for name in (_WHOLE, _HALF):
            notes.setdefault(name, 0.0)
        notes[what] += 1
        # caches further inside have not seen this branch, or not these rows, since the step before
        call.fresh |= self._last.get(call.denoiser, what) != what
        self._last[call.denoiser] = what

    def _keep(self, state: UnitState, call: Call, first: tuple[Tensor, ...], second: tuple[Tensor, ...]) -> None:
        if self._plugin.depth:
            value = tuple((a.float() - b.float()).to(a.dtype) for a, b in zip(first, second, strict=True))
            inputs = first[0].clone() if self._plugin.sees_inputs else None
            state.keep(value, inputs, call.step, None, self._plugin.depth)

    # ---------------------------------------------------------------- both halves in one batch

    def _batch(self, call: Call, latents: Tensor, inner: Forward, args: Any, kwargs: Any) -> Any:
        rows = latents.shape[0]
        state = self._state(call, latents)
        answer = self._ask(call, latents[: rows // 2], state)
        known = self._order.conditional_first(call.denoiser)
        if answer is None or (known is None and isinstance(answer, Unguided)):
            self._count(call, _WHOLE)
            made = inner(*args, **kwargs)
            first, second = _split(Streams(made).tensors)
            self._order.show(call.denoiser, first[0], second[0])
            return self._keep_halves(state, call, made)
        self._count(call, _HALF)
        self._halves.rely(call, latents)
        begin = 0 if known else rows // 2
        index = torch.arange(begin, begin + rows // 2, device=latents.device)
        fewer, named = take_call(args, kwargs, index, rows)
        call.factor *= 0.5
        streams = Streams(inner(*fewer, **named))
        if isinstance(answer, Unguided):
            self._order.rely(call.denoiser, bool(known))
            return streams.around(tuple(torch.cat([one, one]) for one in streams.tensors))
        other = _supplied(streams.tensors, answer.value, -1 if known else 1)
        pairs = zip(streams.tensors, other, strict=True)
        return streams.around(tuple(torch.cat([a, b] if known else [b, a]) for a, b in pairs))

    def _keep_halves(self, state: UnitState, call: Call, made: Any) -> Any:
        self._keep(state, call, *_split(Streams(made).tensors))
        return made

    # ---------------------------------------------------------------- two calls a step

    def _open(self, call: Call, before: _Opened | None, latents: Tensor, context: str | None, made: Any) -> Any:
        if before is not None:
            self._sequence[call.denoiser] = tuple(before.branches)
        streams = Streams(made)
        # whoever gets the tensors may write into them
        kept = Streams(streams.around(tuple(one.clone() for one in streams.tensors)))
        self._opened[call.denoiser] = _Opened(call.step.index, context, latents, kept, [call.branch])
        return made

    def _second(self, call: Call, opened: _Opened, latents: Tensor, context: str | None, compute: Any) -> Any:
        again = call.branch in opened.branches
        opened.branches.append(call.branch)
        if again or len(opened.branches) != 2 or not _same(opened.latents, latents):
            return compute()
        named = {opened.context, context} == {COND, UNCOND}
        certain = named or self._sequence.get(call.denoiser) == (opened.branches[0], call.branch)
        state = self._state(call, latents, latents.shape[0])
        answer = self._ask(call, latents, state) if certain else None
        known = self._order.conditional_first(call.denoiser, opened.context, batched=False)
        if answer is None or (known is None and isinstance(answer, Unguided)):
            self._count(call, _WHOLE)
            made = compute()
            second = Streams(made).tensors
            self._order.show(call.denoiser, opened.streams.tensors[0], second[0])
            self._keep(state, call, opened.streams.tensors, second)
            return made
        self._count(call, _HALF)
        call.factor = 0.0
        first = opened.streams
        if isinstance(answer, Unguided):
            self._need_conditional_first(known)
            self._order.rely(call.denoiser, True)
            return first.around(tuple(one.clone() for one in first.tensors))
        return first.around(_supplied(first.tensors, answer.value, -1))

    def _need_conditional_first(self, known: bool | None) -> None:
        if not known:
            raise CapabilityError(
                explain(
                    f"{self._plugin.name} on {type(self._runtime.denoising.pipe).__name__}, which calls its denoiser "
                    "for the unconditional branch before the conditional one",
                    "the conditional branch first, or both in one batch",
                    "Use cfg_cache() there, or attach nothing to the guidance",
                )
            )


def _split(tensors: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    halves = [one.chunk(2) for one in tensors]
    return tuple(half[0] for half in halves), tuple(half[1] for half in halves)


def _supplied(computed: tuple[Tensor, ...], difference: tuple[Tensor, ...], sign: int) -> tuple[Tensor, ...]:
    """The other half: second = first - difference, first = second + difference."""
    pairs = zip(computed, difference, strict=True)
    return tuple((one.float() + sign * d.float()).to(one.dtype) for one, d in pairs)


def _same(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape:
        return False
    return one.data_ptr() == other.data_ptr() or torch.equal(one, other)
