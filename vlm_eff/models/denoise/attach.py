"""Plugins on a diffusion pipeline: checked against it, and carried by a runtime of their own."""

from __future__ import annotations

from typing import Any

from vlm_eff.core.denoise import DenoiseContext, DenoisePlugin
from vlm_eff.core.errors import CapabilityError, explain
from vlm_eff.core.plugin import Plugin
from vlm_eff.core.resources import check_conflicts
from vlm_eff.models.denoise.clock import is_flow
from vlm_eff.models.denoise.pipeline import describe
from vlm_eff.models.denoise.runtime import DenoiseRuntime
from vlm_eff.models.refusals import refuse_compiled


def denoise_runtime(pipe: Any, plugins: tuple[Plugin, ...]) -> tuple[DenoiseRuntime, tuple[DenoisePlugin, ...]]:
    """The runtime of a pipeline, not installed yet, and its plugins as bound to it.

    Raises:
        CapabilityError: a plugin of another kind of model.
        UnsupportedModelError: no denoiser or no scheduler was found.
        CompiledModelError, ConflictError: see `attach`.
    """
    denoising = describe(pipe)
    strangers = [plugin.name for plugin in plugins if not isinstance(plugin, DenoisePlugin)]
    if strangers:
        raise CapabilityError(
            explain(
                f"{strangers[0]} on the diffusion pipeline {type(pipe).__name__}",
                "methods of the room `diffusion`, such as forecast()",
                "`vlm-eff methods` lists them",
            )
        )
    for module in denoising.denoisers.values():
        refuse_compiled(module)
    first = next(iter(denoising.denoisers.values()))
    context = DenoiseContext(
        denoising.family,
        0,
        training=first.training,
        kind=denoising.kind,
        pipeline=type(pipe).__name__,
        scheduler=type(denoising.scheduler).__name__,
        flow=is_flow(denoising.scheduler),
        denoisers=len(denoising.denoisers),
    )
    bound = tuple(plugin.bind(context) for plugin in plugins if isinstance(plugin, DenoisePlugin))
    check_conflicts(bound)
    return DenoiseRuntime(denoising, bound), bound


def refuse_denoise_plugins(model: str, plugins: tuple[Plugin, ...]) -> None:
    """Raise `CapabilityError` for plugins of pipelines on another model."""
    strangers = [plugin.name for plugin in plugins if isinstance(plugin, DenoisePlugin)]
    if strangers:
        raise CapabilityError(
            explain(
                f"{strangers[0]} on {model}, which is no diffusers pipeline",
                "pipelines of diffusers",
                "Attach it to the pipeline, or use a method for this kind of model",
            )
        )
