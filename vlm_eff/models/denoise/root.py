"""The denoiser as a whole: what it returns is computed or predicted. Needs to know nothing of its blocks."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from vlm_eff.core.denoise import DenoisePlugin, DenoiserSite
from vlm_eff.core.handle import Undo
from vlm_eff.models.denoise.chain import Forward
from vlm_eff.models.denoise.pipeline import Arguments
from vlm_eff.models.denoise.rows import take_call
from vlm_eff.models.denoise.runtime import DENOISER, DenoiseRuntime
from vlm_eff.models.denoise.state import Unit


class RootDriver:
    """Asks a plugin at every call of every denoiser of the pipeline."""

    def __init__(self, runtime: DenoiseRuntime, site: DenoiserSite, plugin: DenoisePlugin) -> None:
        self._runtime, self._site, self._plugin = runtime, site, plugin

    def install(self, undo: Undo) -> None:
        for module in self._runtime.denoising.denoisers.values():
            self._runtime.chains.around(module, self._link, undo, order=DENOISER)

    def began(self) -> None:
        """Nothing of a run is kept here."""

    def ended(self) -> None:
        """Nothing of a run is kept here."""

    def _link(self, module: nn.Module, inner: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        latents = Arguments(module, args, kwargs).latents

        def compute(rows: Tensor | None) -> Any:
            if rows is None:
                return inner(*args, **kwargs)
            fewer, named = take_call(args, kwargs, rows, latents.shape[0])
            return inner(*fewer, **named)

        return self._runtime.unit(self._plugin, self._site, Unit("", "denoiser"), latents, compute)
