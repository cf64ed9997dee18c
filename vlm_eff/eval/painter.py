"""A diffusion pipeline ready to be asked for pictures: a bundled small one, a folder, or a model of the hub."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from vlm_eff.core.errors import InputError, explain
from vlm_eff.eval.loading import device_of, dtype_of, first_line
from vlm_eff.models.denoise.clock import Clock
from vlm_eff.reference.diffusion import generate, load_small_dit_pipeline, load_small_unet_pipeline, need_diffusers

SMALL = ("small-unet", "small-dit")


@dataclass(frozen=True)
class Painter:
    """A pipeline in eval mode, and what it is asked for.

    asked: arguments of the pipeline besides steps, guidance and seed: the prompt, or class ids
    small: True for the bundled pipelines, which draw shapes by class
    """

    pipe: Any = field(repr=False)
    name: str
    asked: dict[str, Any] = field(repr=False)
    small: bool = False

    @property
    def device(self) -> torch.device:
        """Where the denoiser is."""
        found: torch.device = self.pipe.device
        return found

    def asking(self, *, prompt: str = "", classes: tuple[int, ...] = ()) -> Painter:
        """The same pipeline, asked for something else; raises as `load_painter` does."""
        return replace(self, asked=_asked(self.name, prompt, classes))

    def paint(self, *, steps: int, guidance: float, seed: int, after: Callable[[int], None] | None = None) -> Tensor:
        """Pictures [B, 3, H, W] in -1 to 1, of one seed; a video counts as its frames.

        after: called behind every step of the scheduler with how many are done; what it raises ends the run, and the
               pipeline is ready for the next one

        Raises:
            InputError: a prompt or classes for a pipeline that takes none, or one that returns nothing like pictures.
        """
        with nullcontext() if after is None else _following(self.pipe.scheduler, after):
            return self._paint(steps, guidance, seed)

    def _paint(self, steps: int, guidance: float, seed: int) -> Tensor:
        if self.small:
            drawn: Tensor = generate(self.pipe, self.asked["labels"], steps=steps, guidance=guidance, seed=seed)
            return drawn
        known = inspect.signature(self.pipe.__call__).parameters
        strange = [name for name in self.asked if name not in known]
        if strange:
            got = f"{strange[0]} for {type(self.pipe).__name__}, which takes none"
            raise InputError(explain(got, "what the pipeline is asked by", "Give a prompt, or a class, instead"))
        generator = torch.Generator("cpu").manual_seed(seed)
        made = self.pipe(
            num_inference_steps=steps, guidance_scale=guidance, generator=generator, output_type="pt", **self.asked
        )
        pictures = made[0]
        if isinstance(pictures, list):
            pictures = torch.stack([torch.as_tensor(one) for one in pictures])
        if not isinstance(pictures, Tensor) or pictures.dim() < 4:
            raise InputError(
                explain(f"{self.name} returned {type(pictures).__name__}", "pictures or frames", "Use another pipeline")
            )
        return pictures.float().flatten(0, -4).mul(2).sub(1).cpu()


@contextmanager
def _following(scheduler: Any, after: Callable[[int], None]) -> Iterator[None]:
    clock = Clock(lambda: None, lambda: None)
    clock.listeners.append(lambda given: after(clock.index + 1))
    clock.watch(scheduler)
    try:
        yield
    finally:
        clock.release()


def load_painter(
    name: str, *, prompt: str = "", classes: tuple[int, ...] = (), dtype: str = "auto", device: str = "auto"
) -> Painter:
    """Load a pipeline and say what it shall draw.

    name:    "small-unet" or "small-dit", which come along and draw shapes by class id; or a folder or hub id
    prompt:  text for pipelines that take one; classes: class ids for those that take these

    Raises:
        InputError: nothing to draw, a prompt for a pipeline of classes, or files that are no pipeline.
    """
    need_diffusers()
    place, small = device_of(device), name in SMALL
    asked = _asked(name, prompt, classes)
    if small:
        pipe: Any = load_small_unet_pipeline() if name == "small-unet" else load_small_dit_pipeline()
    else:
        pipe = _load(name, getattr(torch, dtype_of(dtype, place)))
        pipe.set_progress_bar_config(disable=True)
    return Painter(pipe.to(place), name, asked, small)


def _asked(name: str, prompt: str, classes: tuple[int, ...]) -> dict[str, Any]:
    if name in SMALL:
        if prompt:
            raise InputError(
                explain(f"a prompt for {name}", "class ids, 0 to 9", "Use --class, or name another model with --model")
            )
        return {"labels": list(classes) or [3]}
    if bool(prompt) == bool(classes):
        got = "neither a prompt nor classes" if not prompt else "a prompt and classes"
        raise InputError(explain(got, "one of the two", "Say what to draw with --prompt or --class"))
    return {"prompt": prompt} if prompt else {"class_labels": list(classes)}


def _load(name: str, dtype: torch.dtype) -> Any:
    import diffusers

    make: Any = diffusers.DiffusionPipeline.from_pretrained
    try:
        return make(name, dtype=dtype)
    except (OSError, ValueError, KeyError, ImportError, AttributeError) as error:
        raise InputError(
            explain(
                f"cannot load {name!r} as a diffusion pipeline ({first_line(error)})",
                f"{', '.join(SMALL)}, a folder written by save_pretrained, or a model id of the hub",
                "Check the name and the files",
            )
        ) from None
