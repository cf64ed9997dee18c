"""Data of which the perfect denoiser is known: what a scheduler makes of them says whether it suits a model.

Every number of x0 is drawn from N(mean, spread^2). At x = a x0 + b noise, with s^2 = a^2 spread^2 + b^2,

    E[x0 | x] = mean + a spread^2 (x - a mean) / s^2        E[noise | x] = b (x - a mean) / s^2

and along the probability flow z = (x - a mean) / s stays as it is, so a run that begins at z has to end at
mean + spread z. A random sampler has to end with that mean and spread instead.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vlm_eff.models.denoise.scheduling import Asking, continuous

SHAPE = (1, 4, 24, 24)
# solvers of first order are .03 to .05 off at this many steps, TCD with its noise .12, wrong combinations .4 and more
STEPS, OFF = 40, 0.2
# distilled models end in a few, at random places: 2304 numbers say no more than .1 of their spread
FEW_STEPS, FEW_OFF = 4, 0.25
# a straight path is followed exactly; some solvers begin at .999 of the noise
STRAIGHT_STEPS, STRAIGHT_OFF = 8, 0.02


@dataclass(frozen=True)
class Model:
    """A perfect denoiser.

    predicts:    "flow", "epsilon", "v_prediction" or "sample"
    levels:      [T] alphas_cumprod of the training, None for flow matching and continuous times
    train_steps: number of training steps
    consistent:  predicts where the path ends in place of the mean, as distilled models do
    """

    predicts: str
    levels: Tensor | None
    train_steps: int
    mean: float
    spread: float
    consistent: bool = False

    def signal(self, time: float) -> tuple[float, float]:
        """Weights of data and noise at a time of the scheduler."""
        if self.predicts == "flow":
            return 1 - time / self.train_steps, time / self.train_steps
        if self.levels is None:
            sigma = math.exp(4 * time)
            return 1 / math.sqrt(1 + sigma**2), sigma / math.sqrt(1 + sigma**2)
        place = min(max(time, 0.0), len(self.levels) - 1.0)
        low = int(place)
        high = min(low + 1, len(self.levels) - 1)
        kept = float(self.levels[low]) * (1 - place + low) + float(self.levels[high]) * (place - low)
        return math.sqrt(kept), math.sqrt(1 - kept)

    def path(self, x: Tensor, time: float) -> Tensor:
        """Which path x is on: z."""
        a, b = self.signal(time)
        return (x - a * self.mean) / math.sqrt(a**2 * self.spread**2 + b**2)

    def __call__(self, x: Tensor, time: float) -> Tensor:
        """What a denoiser of the kind returns."""
        a, b = self.signal(time)
        z = self.path(x, time)
        scale = math.sqrt(a**2 * self.spread**2 + b**2)
        data, noise = self.mean + a * self.spread**2 * z / scale, b * z / scale
        if self.consistent:
            data = self.mean + self.spread * z
            noise = (x - a * data) / b
        return {"flow": noise - data, "epsilon": noise, "v_prediction": a * noise - b * data, "sample": data}[
            self.predicts
        ]


def distance(build: Callable[[], Any], asking: Asking, model: Model) -> float:
    """How far from what it should be a scheduler ends, in units of the data's spread."""
    end, path, drew = _run(build(), asking, model)
    if not drew:
        want = model.mean + model.spread * path
        return float((end - want).square().mean().sqrt()) / model.spread
    mean, spread = float(end.mean()), float(end.std())
    return max(abs(mean - model.mean), abs(spread - model.spread)) / model.spread


def straight_distance(build: Callable[[], Any], asking: Asking) -> float:
    """How far from its end a scheduler of flow matching ends when the velocity is constant."""
    scheduler = build()
    scheduler.set_timesteps(**asking.keywords(scheduler, STRAIGHT_STEPS))
    noise, data = _noise(0), 0.5 * _noise(2)
    x = noise
    for time in scheduler.timesteps:
        x = scheduler.step(noise - data, time, x, **_random(scheduler)).prev_sample
    return float((x - data).abs().max())


def data_for(scheduler: Any, predicts: str, levels: Tensor | None, *, consistent: bool) -> Model:
    """The test data of a scheduler: as wide as latents are, unless it clips what it takes for the data."""
    clips = scheduler.config.get("clip_sample", False) or scheduler.config.get("thresholding", False)
    mean, spread = (0.1, 0.2) if clips else (0.5, 1.3)
    table = None if continuous(scheduler) or predicts == "flow" else levels
    return Model(predicts, table, int(scheduler.config.num_train_timesteps), mean, spread, consistent)


def _run(scheduler: Any, asking: Asking, model: Model) -> tuple[Tensor, Tensor, bool]:
    """Where a run ends, which path it began on, and whether it drew noise of its own."""
    scheduler.set_timesteps(**asking.keywords(scheduler, FEW_STEPS if model.consistent else STEPS))
    x = _noise(0) * (1.0 if model.predicts == "flow" else float(scheduler.init_noise_sigma))
    path: Tensor | None = None
    extra = _random(scheduler)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        before = _drawn(extra)
        for time in scheduler.timesteps:
            given = scheduler.scale_model_input(x, time) if hasattr(scheduler, "scale_model_input") else x
            if path is None:
                path = model.path(given, float(time))
            x = scheduler.step(model(given, float(time)), time, x, **extra).prev_sample
        drew = not torch.equal(before, _drawn(extra))
    assert path is not None
    return x, path, drew


def _noise(seed: int) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


def _random(scheduler: Any) -> dict[str, Any]:
    takes = "generator" in inspect.signature(scheduler.step).parameters
    return {"generator": torch.Generator().manual_seed(0)} if takes else {}


def _drawn(extra: dict[str, Any]) -> Tensor:
    own = [generator.get_state() for generator in extra.values()]
    return torch.cat([torch.get_rng_state(), *own])
