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
from vlm_eff.core.handle import Undo
from vlm_eff.models.denoise.chain import Forward
from vlm_eff.models.denoise.rows import Streams
from vlm_eff.models.denoise.runtime import DENOISER, DenoiseRuntime
from vlm_eff.models.denoise.state import Unit
from vlm_eff.models.denoise.unet import deep_modules


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
        if place == count - 1:
            runtime.skip(asked)
            return asked.state.form.around(asked.answer.value)
        return self._forms[key].empty()


def _hidden(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """What a block or layer of a UNet is called with [R, ...]."""
    found = args[0] if args else kwargs["hidden_states"]
    assert isinstance(found, Tensor)
    return found
