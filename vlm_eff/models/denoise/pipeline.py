"""What a diffusers pipeline is made of: its denoisers and its scheduler."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from vlm_eff.core.errors import UnsupportedModelError, explain

# components that denoise, by the names that pipelines give them
_DENOISERS = ("unet", "transformer", "transformer_2", "unet_2", "prior")
# what a denoiser calls its latents and its time
_LATENTS = ("sample", "hidden_states", "x")
_TIMES = ("timestep", "timesteps", "t")


@dataclass(frozen=True)
class Denoising:
    """A pipeline as found: it describes, and never decides.

    pipe: the pipeline; its scheduler is read from it whenever it is needed, since users change it
    denoisers: name in the pipeline -> module
    """

    pipe: Any
    denoisers: dict[str, nn.Module]

    @property
    def scheduler(self) -> Any:
        """The scheduler that the pipeline uses now."""
        return self.pipe.scheduler

    @property
    def family(self) -> str:
        """Class of the first denoiser."""
        return type(next(iter(self.denoisers.values()))).__name__

    @property
    def kind(self) -> str:
        """ "unet" where the denoiser goes down and up again, "transformer" where its blocks stand in a row."""
        first = next(iter(self.denoisers.values()))
        return "unet" if hasattr(first, "up_blocks") and hasattr(first, "down_blocks") else "transformer"


def is_pipeline(model: Any) -> bool:
    """True for pipelines of diffusers, without importing it."""
    return any(kind.__name__ == "DiffusionPipeline" for kind in type(model).__mro__)


def is_denoiser(model: Any) -> bool:
    """True for models of diffusers."""
    return isinstance(model, nn.Module) and any(
        kind.__name__ == "ModelMixin" and kind.__module__.startswith("diffusers") for kind in type(model).__mro__
    )


def describe(pipe: Any) -> Denoising:
    """Find the parts of a pipeline.

    Raises:
        UnsupportedModelError: a model without its pipeline, or a pipeline without denoiser or scheduler.
    """
    if not is_pipeline(pipe):
        raise UnsupportedModelError(
            explain(
                f"{type(pipe).__name__} without its pipeline",
                "a diffusers pipeline, which knows the scheduler",
                "Attach to the pipeline that the model is part of",
            )
        )
    found = {name: getattr(pipe, name, None) for name in _DENOISERS}
    denoisers = {name: module for name, module in found.items() if isinstance(module, nn.Module)}
    if not denoisers or not hasattr(getattr(pipe, "scheduler", None), "set_timesteps"):
        raise UnsupportedModelError(
            explain(
                f"the pipeline {type(pipe).__name__} with components {sorted(pipe.components)}",
                "pipelines with a scheduler and a denoiser named " + ", ".join(_DENOISERS),
                "Use such a pipeline; of a pipeline made of pipelines attach to the inner one",
            )
        )
    return Denoising(pipe, denoisers)


class Arguments:
    """A call of a denoiser, by name."""

    def __init__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.named: dict[str, Any] = dict(kwargs)
        if args:
            self.named |= inspect.signature(type(module).forward).bind_partial(module, *args).arguments
            self.named.pop("self", None)

    @property
    def latents(self) -> Tensor:
        """What is denoised [R, ...]; of a list the first."""
        found = next((self.named[name] for name in _LATENTS if name in self.named), None)
        if isinstance(found, list):
            found = found[0]
        if not isinstance(found, Tensor):
            raise UnsupportedModelError(
                explain(
                    f"a denoiser called with {sorted(self.named)}",
                    "latents under " + ", ".join(_LATENTS),
                    "Leave this pipeline without plugins",
                )
            )
        return found

    @property
    def time(self) -> Any:
        """The timestep it is called for, as given."""
        return next((self.named[name] for name in _TIMES if name in self.named), None)
