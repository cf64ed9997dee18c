"""Attention and MLPs of the denoiser's blocks, one by one: what each returns is computed or predicted."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from vlm_eff.core.denoise import DenoisePlugin, ModuleSite
from vlm_eff.core.errors import UnsupportedModelError, explain
from vlm_eff.core.handle import Undo
from vlm_eff.models.denoise.chain import Forward
from vlm_eff.models.denoise.parts import Part, parts_of
from vlm_eff.models.denoise.rows import Streams, take_call
from vlm_eff.models.denoise.runtime import DenoiseRuntime
from vlm_eff.models.denoise.state import Unit
from vlm_eff.models.denoise.view import Asked, Call

# farther outside than whatever changes the tokens that a module computes on
MODULE = -10


class ModuleDriver:
    """Asks a plugin at every call of every module that its site names.

    A module that is called several times in one call of the denoiser (an MLP in chunks) is as many units.
    """

    def __init__(self, runtime: DenoiseRuntime, site: ModuleSite, plugin: DenoisePlugin) -> None:
        self._runtime, self._site, self._plugin = runtime, site, plugin
        self._fused: list[_Fused] = []

    def install(self, undo: Undo) -> None:
        site, chains = self._site, self._runtime.chains
        for denoiser in self._runtime.denoising.denoisers.values():
            for part in parts_of(denoiser, site.kinds, site.needed, site.blocks):
                if part.before:
                    fused = _Fused(self._runtime, site, self._plugin, part)
                    self._fused.append(fused)
                    for module in part.before:
                        chains.around(module, fused.in_front, undo, order=MODULE)
                    chains.around(part.module, fused.last, undo, order=MODULE)
                else:
                    chains.around(part.module, self._around(part), undo, order=MODULE)

    def began(self) -> None:
        """Nothing of a run before is used again."""
        for fused in self._fused:
            fused.forget()

    ended = began

    def _around(self, part: Part) -> Any:
        runtime, units = self._runtime, _Units(part)

        def link(module: nn.Module, inner: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if runtime.call is None or not runtime.active:
                return inner(*args, **kwargs)
            inputs = first_tensor(args, kwargs)

            def compute(rows: Tensor | None) -> Any:
                if rows is None:
                    return inner(*args, **kwargs)
                fewer, named = take_call(args, kwargs, rows, inputs.shape[0])
                return inner(*fewer, **named)

            return runtime.unit(self._plugin, self._site, units.of(runtime.call), inputs, compute)

        return link


class _Units:
    """Units of one module: the first, second... time that it is called in a call of the denoiser."""

    def __init__(self, part: Part) -> None:
        self._part = part
        self._made: list[Unit] = []
        self._note = f"times {id(self)}"

    def of(self, call: Call) -> Unit:
        """The unit of this time."""
        times = call.notes.get(self._note, 0)
        call.notes[self._note] = times + 1
        if times == len(self._made):
            part = self._part
            name = f"{part.name}#{times}" if times else part.name
            self._made.append(Unit(name, part.kind, part.index, part.blocks))
        return self._made[times]


@dataclass(frozen=True)
class _Shapes:
    form: Streams
    tensors: tuple[Tensor, ...]


class _Fused:
    """Modules that feed one projection and nothing else: where that is predicted, they are not computed."""

    def __init__(self, runtime: DenoiseRuntime, site: ModuleSite, plugin: DenoisePlugin, part: Part) -> None:
        self._runtime, self._site, self._plugin, self._units = runtime, site, plugin, _Units(part)
        self._asked: Asked | None = None
        self._call: Call | None = None
        self._since = 0
        self._returned: dict[tuple[Any, ...], _Shapes] = {}

    def forget(self) -> None:
        """A run begins or ends."""
        self._asked = self._call = None
        self._returned.clear()

    def in_front(self, module: nn.Module, inner: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Link around a module that feeds the projection; the first to be called asks for all."""
        runtime = self._runtime
        if runtime.call is None or not runtime.active:
            return inner(*args, **kwargs)
        inputs = first_tensor(args, kwargs)
        if self._asked is None or self._call is not runtime.call:
            asked = runtime.ask(self._plugin, self._site, self._units.of(runtime.call), inputs)
            assert asked is not None
            # rows apart would have to be taken out of all of the modules: such blocks are computed whole
            whole = asked.answer is None or asked.answer.rows is not None
            self._asked = dataclasses.replace(asked, answer=None) if whole else asked
            self._call, self._since = runtime.call, runtime.work.so_far()
        key = (module, tuple(inputs.shape), inputs.dtype, inputs.device)
        if self._asked.answer is not None and key in self._returned:
            shapes = self._returned[key]
            return shapes.form.around(shapes.tensors)
        made = inner(*args, **kwargs)
        streams = Streams(made)
        # one number, seen as a tensor of that shape
        empty = tuple(tensor.new_zeros(()).expand(tensor.shape) for tensor in streams.tensors)
        self._returned[key] = _Shapes(streams.skeleton, empty)
        return made

    def last(self, module: nn.Module, inner: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Link around the projection."""
        runtime, asked, call = self._runtime, self._asked, self._call
        self._asked = self._call = None
        if asked is None or call is not runtime.call:
            return inner(*args, **kwargs)
        if asked.answer is not None:
            runtime.skip(asked)
            assert asked.state.form is not None
            return asked.state.form.around(asked.answer.value)
        made = inner(*args, **kwargs)
        runtime.work.note(asked.name, self._since)
        runtime.keep(asked, Streams(made), own=False)
        return made


def first_tensor(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """What a module is called with, [R, ...]."""
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor):
            return value
    raise UnsupportedModelError(
        explain("a module that is called without a tensor", "attention and MLPs", "Leave its block out")
    )
