"""What happens in a run of a diffusion pipeline with plugins attached.

set_timesteps    a run begins: everything kept is forgotten
denoiser called  which step, which guidance branch; the drivers of the plugins' sites have their links around the
                 denoiser, its blocks and their modules, and ask the plugins there
step             the step ends; behind the last one what was kept is freed
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NoReturn

from torch import Tensor, nn

from vlm_eff.core.denoise import DenoisePlugin, DenoiseSite, Predict
from vlm_eff.core.errors import CapabilityError, StateError, explain
from vlm_eff.core.handle import Handle, Undo
from vlm_eff.core.report import Stats
from vlm_eff.models.denoise.branch import Branches
from vlm_eff.models.denoise.chain import Chains, Forward
from vlm_eff.models.denoise.clock import Clock
from vlm_eff.models.denoise.drivers import Driver, driver_for
from vlm_eff.models.denoise.ledger import DenoiseLedger
from vlm_eff.models.denoise.pipeline import Arguments, Denoising
from vlm_eff.models.denoise.rows import Streams, join
from vlm_eff.models.denoise.state import Store, Unit
from vlm_eff.models.denoise.view import Asked, Call, UnitView
from vlm_eff.models.denoise.work import Work

# order of links around the denoiser itself: the smallest is outermost
OUTERMOST, GUIDANCE, DENOISER, GUIDANCE_INSIDE, INNERMOST = -100, -20, -10, -5, 100
Compute = Callable[[Tensor | None], Any]


class DenoiseRuntime:
    """Carries out what plugins of a pipeline decide."""

    def __init__(self, denoising: Denoising, plugins: tuple[DenoisePlugin, ...]) -> None:
        self._active = True
        # called when the handle is paused, goes on, or is detached
        self.switches: list[Callable[[bool], None]] = []
        self.handle: Handle | None = None
        self.weights: dict[str, Any] = {}
        self.penalties: list[Tensor] = []
        self.denoising = denoising
        self.chains = Chains()
        self.store = Store()
        self.work = Work()
        self.ledger = DenoiseLedger()
        self.call: Call | None = None
        self.clock = Clock(self._began, self._ended)
        self.plugins = plugins
        self._branches = Branches()
        self._drivers: list[Driver] = []

    @property
    def active(self) -> bool:
        """Whether plugins are asked: not while the handle is paused."""
        return self._active

    @active.setter
    def active(self, value: bool) -> None:
        self._active = value
        for switch in self.switches:
            switch(value)

    # ---------------------------------------------------------------- installation

    def install(self, undo: Undo) -> None:
        """Put links around what the plugins' sites name, and follow the scheduler."""
        undo.push(self.store.clear)
        for plugin in self.plugins:
            for site in plugin.sites:
                self._drivers.append(driver_for(site)(self, site, plugin))
        for driver in self._drivers:
            driver.install(undo)
        for name, module in self.denoising.denoisers.items():
            self.chains.around(module, self._entering(name), undo, order=OUTERMOST)
            self.chains.around(module, self._computing, undo, order=INNERMOST)
        # last, so that it follows a scheduler that a driver has put in place, and lets go of it first
        undo.push(self.clock.release)
        self.clock.watch(self.denoising.scheduler)
        self.chains.settled()
        undo.push(self.chains.settled)

    def _entering(self, name: str) -> Any:
        def link(module: nn.Module, inner: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if not self.active:
                return inner(*args, **kwargs)
            if self.denoising.scheduler is not self.clock.scheduler:
                # the user has given the pipeline another one
                self.clock.watch(self.denoising.scheduler)
                self.clock.begin()
            given = Arguments(module, args, kwargs)
            step = self.clock.now(given.time)
            branch = self._branches.of(name, self.chains.context(module), given.named)
            before, self.call = self.call, Call(name, step, branch, given.latents, given.named)
            self.call.figures = self.ledger.now.notes
            try:
                made = inner(*args, **kwargs)
                self._note(self.call)
            finally:
                self.call = before
            return made

        return link

    def _computing(self, module: nn.Module, inner: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        call = self.call
        if call is None:
            return inner(*args, **kwargs)
        shape = _shape(call, Arguments(module, args, kwargs).latents)
        call.notes["shape"] = shape
        made = self.work.measure(shape, lambda: inner(*args, **kwargs), lambda: call.skipped == 0)
        whole = self.work.whole(shape)
        call.skipped += call.saved / whole if whole else 0.0
        return made

    def _note(self, call: Call) -> None:
        kept = self.store.bytes() if call.computed > 0 else 0
        self.ledger.add(call, self.work.whole(_shape(call, call.latents)), kept, self.store.mismatches)

    def cheaper(self, flops: int) -> None:
        """What is computed of this call needs so many FLOPs less than in the bare model; below 0 more."""
        if self.call is not None:
            self.call.saved += flops
            self.work.cheaper(flops)

    # ---------------------------------------------------------------- a run

    def _began(self) -> None:
        self.store.clear()
        self._branches.reset()
        self.chains.mend()
        if self.active:
            self.ledger.begin(type(self.clock.scheduler).__name__)
        for driver in self._drivers:
            driver.began()

    def _ended(self) -> None:
        for driver in self._drivers:
            driver.ended()
        self.store.clear()
        self._branches.reset()

    # ---------------------------------------------------------------- units

    def unit(
        self,
        plugin: DenoisePlugin,
        site: DenoiseSite,
        unit: Unit,
        inputs: Tensor,
        compute: Compute,
        probe: Callable[[str], Tensor] | None = None,
    ) -> Any:
        """Compute a unit or not, as its plugin says, and keep what it will want later.

        inputs:  [R, ...] what the unit is called with; states are kept for inputs of one shape
        compute: given None it returns the unit's output, given rows [K] the output for these rows alone
        """
        asked = self.ask(plugin, site, unit, inputs, probe)
        if asked is None:
            return compute(None)
        if asked.answer is None:
            made = self.work.inside(asked.name, lambda: compute(None))
            # whoever gets the tensors may write into them
            self.keep(asked, Streams(made), own=False)
            return made
        self.skip(asked)
        rows = asked.answer.rows
        if rows is None:
            return asked.state.form.around(asked.answer.value)
        computed = Streams(compute(asked.left))
        value = tuple(join(c, p, rows) for c, p in zip(computed.tensors, asked.answer.value, strict=True))
        made = asked.state.form.around(value)
        self.keep(asked, Streams(made), own=False)
        return made

    def ask(
        self,
        plugin: DenoisePlugin,
        site: DenoiseSite,
        unit: Unit,
        inputs: Tensor,
        probe: Callable[[str], Tensor] | None = None,
    ) -> Asked | None:
        """What the plugin says of a unit; None outside of calls. For units that are not one call: see `unit`.

        Whoever asks computes what is to be computed, and tells with `keep` what came out and with `skip` what did not.
        """
        call = self.call
        if call is None or not self.active:
            return None
        state = self.store.of((plugin.name, call.denoiser, call.branch, unit), inputs)
        if call.fresh:
            state.history = []
        started = time.perf_counter()
        answer = plugin.at(site, UnitView(unit, call, inputs, state, probe))
        self.ledger.now.deciding_ms += 1000 * (time.perf_counter() - started)
        if answer is not None and not isinstance(answer, Predict):
            raise StateError(explain(f"{plugin.name} answered {answer!r}", "Predict or None", "Correct the plugin"))
        if answer is not None and (state.form is None or len(answer.value) != state.streams):
            raise StateError(
                explain(
                    f"{plugin.name} predicted {len(answer.value)} streams of {unit}, which has {state.streams}",
                    "what was computed before",
                    "Let the plugin compute first",
                )
            )
        return Asked(plugin, unit, inputs, state, answer)

    def keep(self, asked: Asked, streams: Streams, *, own: bool) -> None:
        """Remember what was computed of a unit: streams of all rows; own: nobody else holds the tensors."""
        call, state, plugin = self.call, asked.state, asked.plugin
        assert call is not None
        rows = None if asked.answer is None else asked.answer.rows
        if rows is None:
            state.form, state.streams = streams.skeleton, len(streams.tensors)
        value = streams.tensors if own else tuple(tensor.clone() for tensor in streams.tensors)
        inputs = asked.inputs.clone() if plugin.sees_inputs else None
        state.keep(value, inputs, call.step, None if rows is None else ~rows, plugin.depth)

    def skip(self, asked: Asked) -> None:
        """Count the work that a predicted unit saves."""
        assert self.call is not None and asked.answer is not None
        share = 1.0 if asked.answer.rows is None else 1 - asked.left.numel() / asked.inputs.shape[0]
        self._skipped(self.call, asked.unit, asked.name, share)

    def _skipped(self, call: Call, unit: Unit, name: str, share: float) -> None:
        if unit.kind == "denoiser":
            call.factor *= 1 - share
            return
        shape = call.notes["shape"]
        whole = self.work.whole(shape)
        call.skipped += share * self.work.part(shape, name) / whole if whole else 0.0

    # ---------------------------------------------------------------- the handle's side

    def stats(self) -> Stats:
        """What each run computed."""
        names = tuple(plugin.name for plugin in self.plugins)
        return Stats(names, self.denoising.family, calls=self.ledger.calls, runs=self.ledger.seen())

    def reset(self) -> None:
        """Forget all reports."""
        self.ledger.reset()

    def survivors(self, layer: int) -> NoReturn:
        """Refused, as everything of a language model is: there is none."""
        raise CapabilityError(
            explain("a diffusion pipeline has no decoder and no cache", "stats() of such a handle", "Ask for stats()")
        )

    attended = visual = kv_positions = kv_modalities = kv_contents = tower_groups = survivors


def _shape(call: Call, latents: Tensor) -> tuple[Any, ...]:
    # FLOPs depend on how long the prompt is too, but denoisers are called with one length a run
    return (call.denoiser, tuple(latents.shape), str(latents.dtype))
