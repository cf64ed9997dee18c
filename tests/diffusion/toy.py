"""A denoiser whose outputs are known in closed form, inside a real pipeline, and spies on what a denoiser computes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

from tests.tiny.pipelines import TinyPipeline, make_pipeline


class ToyUNet(diffusers.UNet2DConditionModel):
    """sample * gain + mean of the prompt * (1 + slope * time): its two halves differ by a line over the steps."""

    slope, gain = 0.0, 0.1

    def forward(self, sample: Tensor, timestep: Any, encoder_hidden_states: Tensor, **kwargs: Any) -> Any:
        mean = encoder_hidden_states.mean((1, 2)).view(-1, 1, 1, 1)
        return (self.gain * sample + mean * (1 + self.slope * float(timestep)),)


def toy_pipeline(slope: float = 0.0, gain: float = 0.1) -> TinyPipeline:
    """A StableDiffusionPipeline around `ToyUNet`."""
    made = make_pipeline("sd")
    made.pipe.unet.__class__ = ToyUNet
    made.pipe.unet.slope, made.pipe.unet.gain = slope, gain
    return made


@dataclass
class Seen:
    """Rows and, row by row, the prompt of a call that was computed."""

    rows: int
    prompts: Tensor | None


@contextmanager
def spy(denoiser: nn.Module) -> Iterator[list[Seen]]:
    """What reaches the denoiser itself, innermost."""
    calls: list[Seen] = []

    def look(module: nn.Module, args: Any, kwargs: Any) -> None:
        latents = next(kwargs[name] for name in ("sample", "hidden_states") if name in kwargs) if not args else args[0]
        calls.append(Seen(latents.shape[0], kwargs.get("encoder_hidden_states", kwargs.get("class_labels"))))

    own = type(denoiser).forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        look(denoiser, args, kwargs)
        return own(denoiser, *args, **kwargs)

    denoiser.__dict__["forward"] = forward
    try:
        yield calls
    finally:
        del denoiser.__dict__["forward"]


def distance(got: Tensor, want: Tensor) -> float:
    """||got - want|| / ||want||."""
    return float((got - want).double().norm() / want.double().norm())


def prompts(*numbers: int) -> Tensor:
    """Embeddings of some prompts [R, T, D]."""
    return torch.cat([torch.randn(1, 5, 16, generator=torch.Generator().manual_seed(300 + n)) for n in numbers])
