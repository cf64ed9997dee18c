"""The inside of a UNet below one of its skip connections: computed, or stood in for by what came up from it before.

What is skipped lies in one piece of the call, but not in one module: whole blocks, and layers of the two blocks in
which the skip connection begins and ends. The plugin is asked where that piece is entered; where it is not
computed, all modules in it return memory that nobody reads, and the last one returns the prediction.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vlm_eff.core.denoise import DeepSite, DenoisePlugin
from vlm_eff.core.errors import CapabilityError, explain
from vlm_eff.core.handle import Undo
from vlm_eff.models.denoise.chain import Forward
from vlm_eff.models.denoise.rows import Streams, join, take_call
from vlm_eff.models.denoise.runtime import DENOISER, DenoiseRuntime
from vlm_eff.models.denoise.state import Unit
from vlm_eff.models.denoise.unet import deep_modules
from vlm_eff.models.denoise.view import Asked, Call


@dataclass(frozen=True)
class Form:
    """What a module returned, without the numbers."""

    skeleton: Streams
    tensors: tuple[tuple[torch.Size, torch.dtype, torch.device], ...]

    @classmethod
    def of(cls, output: Any) -> Form:
        """The form of an output."""
        streams = Streams(output)
        return cls(streams.skeleton, tuple((t.shape, t.dtype, t.device) for t in streams.tensors))

    def empty(self) -> Any:
        """An output of this form; its numbers are whatever stood in memory."""
        # memory of its own for each: adapters add to them in place
        made = (torch.empty(shape, dtype=dtype, device=device) for shape, dtype, device in self.tensors)
        return self.skeleton.around(tuple(made))


class DeepDriver:
    """Asks a plugin once a call whether the inside of the UNet is computed.

    Works for any number of layers a block, with or without attention, on images and video. ControlNet's residuals
    reach all skip connections that are computed; those that enter the inside are ignored where it is not.
    """

    def __init__(self, runtime: DenoiseRuntime, site: DeepSite, plugin: DenoisePlugin) -> None:
        self._runtime, self._site, self._plugin = runtime, site, plugin
        self._unit = Unit("", "deep", site.branch)
        self._forms: dict[Any, Form] = {}

    def install(self, undo: Undo) -> None:
        for unet in self._runtime.denoising.denoisers.values():
            inside = deep_modules(unet, self._site.branch)
            for place, module in enumerate(inside):
                link = functools.partial(self._link, place, len(inside))
                self._runtime.chains.around(module, link, undo, order=DENOISER)

    def began(self) -> None:
        self._forms = {}

    def ended(self) -> None:
        self._forms = {}

    def _link(
        self, place: int, count: int, module: nn.Module, inner: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        runtime, call = self._runtime, self._runtime.call
        if place == 0 and call is not None:
            asked = runtime.ask(self._plugin, self._site, self._unit, _hidden(args, kwargs))
            if asked is not None and asked.answer is not None and asked.answer.rows is not None:
                _check_rows(call, asked)
            call.notes[self] = (asked, runtime.work.so_far())
        asked, since = (None, 0) if call is None else call.notes[self]
        if call is None or asked is None:
            return inner(*args, **kwargs)
        key = (call.denoiser, place, asked.inputs.shape, asked.inputs.dtype)
        if asked.answer is None:
            made = inner(*args, **kwargs)
            self._forms[key] = Form.of(made)
            if place == count - 1:
                runtime.work.note(asked.name, since)
                # whoever gets it writes into it: FreeU does
                runtime.keep(asked, Streams(made), own=False)
            return made
        if asked.answer.rows is not None:
            return self._partly(asked, self._forms[key], place == count - 1, inner, args, kwargs)
        if place == count - 1:
            runtime.skip(asked)
            return asked.state.form.around(asked.answer.value)
        return self._forms[key].empty()

    def _partly(
        self, asked: Asked, form: Form, last: bool, inner: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """A module for the rows that are computed; nobody reads what the others hold, until the last one joins them."""
        fewer, named = take_call(args, kwargs, asked.left, asked.inputs.shape[0])
        computed = Streams(inner(*fewer, **named)).tensors
        if not last:
            made = form.empty()
            for whole, part in zip(Streams(made).tensors, computed, strict=True):
                whole[asked.left] = part
            return made
        answer, state = asked.answer, asked.state
        assert answer is not None and answer.rows is not None and state.form is not None
        value = tuple(join(c, p, answer.rows) for c, p in zip(computed, answer.value, strict=True))
        self._runtime.skip(asked)
        self._runtime.keep(asked, Streams(value), own=False)
        return state.form.around(value)


def _check_rows(call: Call, asked: Asked) -> None:
    if call.rows != asked.inputs.shape[0]:
        raise CapabilityError(
            explain(
                f"{asked.plugin.name} decides row by row inside {call.denoiser}, whose rows there are frames",
                "one decision for the batch",
                "Set per_row=False",
            )
        )


def _hidden(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """What a block or layer of a UNet is called with [R, ...]."""
    found = args[0] if args else kwargs["hidden_states"]
    assert isinstance(found, Tensor)
    return found
