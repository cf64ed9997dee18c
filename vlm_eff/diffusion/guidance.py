"""Parts of methods that save work of classifier-free guidance: when both halves are computed, and what is supplied."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from vlm_eff.core.config import part
from vlm_eff.core.denoise import DenoisePlugin, DenoiseSite, GuidanceSite, Unguided
from vlm_eff.core.errors import CapabilityError, ConfigError, explain
from vlm_eff.core.resources import Resource
from vlm_eff.diffusion.policies import check_count
from vlm_eff.models.denoise.view import UnitView


@part
@dataclass(frozen=True)
class EveryFrom:
    """Computes all steps up to the fraction `start` of a run, and then every `interval`-th time that it is asked.

    Where caches around it leave steps out, it is not asked in these.
    """

    interval: int
    start: float = 0.0

    def __post_init__(self) -> None:
        check_count("interval", self.interval, 1)
        check_fraction("start", self.start)

    def __call__(self, view: UnitView, change: Tensor | None, forced: bool) -> bool:
        step = view.step
        if not view.history or step.index <= int(self.start * step.count + 0.5):
            return False
        last = view.history[-1].steps[0].index
        known, asked = view.notes.get("since", (last, 0))
        asked = asked + 1 if known == last else 1
        view.notes["since"] = (last, asked)
        return asked < self.interval


@part
@dataclass(frozen=True)
class FrequencySplit:
    """The last value in two bands of spatial frequency, each of which is weighted more at every step that reuses it.

    low:    factor a step of frequencies up to a fifth of the shorter side, between 10 % and 90 % of the run
    high:   factor a step of all higher ones, in the last 30 % of the run
    Takes values [..., height, width], which sequences of packed latents are not: `CapabilityError` for these.
    """

    low: float = 1.1
    high: float = 1.1
    depth = 1
    sees_inputs = False

    def __call__(self, view: UnitView) -> tuple[Tensor, ...]:
        past = view.history[-1]
        part_of_run, since = view.step.index / view.step.count, past.steps[0].index
        last, low, high = view.notes.get("bands", (since, 1.0, 1.0))
        if last != since:
            low = high = 1.0
        low *= self.low if 0.1 < part_of_run < 0.9 else 1.0
        high *= self.high if part_of_run > 0.7 else 1.0
        view.notes["bands"] = (since, low, high)
        return tuple(weigh_bands(value, low, high) for value in past.value)


def weigh_bands(value: Tensor, low: float, high: float) -> Tensor:
    """`value` [R, ..., height, width] with its low and high spatial frequencies multiplied by one factor each.

    Raises:
        CapabilityError: a value without height and width.
    """
    if value.dim() < 4:
        raise CapabilityError(
            explain(
                f"outputs of shape {tuple(value.shape)} to split by frequency",
                "outputs [R, ..., height, width]",
                'Use split="none" with this model, whose latents are packed into a sequence',
            )
        )
    height, width = value.shape[-2:]
    down = torch.fft.fftfreq(height, 1 / height, device=value.device)
    along = torch.fft.fftfreq(width, 1 / width, device=value.device)
    inside = down[:, None] ** 2 + along[None] ** 2 <= (min(height, width) // 5) ** 2
    weights = torch.where(inside, low, high)
    return torch.fft.ifft2(torch.fft.fft2(value.float()) * weights).real.to(value.dtype)


class Rule(Protocol):
    """When a step is guided."""

    @property
    def looks(self) -> bool:
        """Whether it looks at the halves of earlier steps."""
        ...

    def __call__(self, view: UnitView) -> bool:
        """True to compute both halves."""
        ...


@part
@dataclass(frozen=True)
class Band:
    """Guides from the fraction `start` of the run's steps up to the fraction `stop`."""

    start: float
    stop: float
    looks = False

    def __post_init__(self) -> None:
        check_fraction("start", self.start)
        check_fraction("stop", self.stop)
        if self.start > self.stop:
            raise ConfigError(explain(f"start={self.start} behind stop={self.stop}", "start <= stop", "Swap them"))

    def __call__(self, view: UnitView) -> bool:
        # the middle of the step's share of the run, so that 0 to 1 holds them all
        return self.start <= (view.step.index + 0.5) / view.step.count < self.stop


@part
@dataclass(frozen=True)
class SigmaBand:
    """Guides while `low` < sigma <= `high`."""

    low: float
    high: float
    looks = False

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.high:
            raise ConfigError(
                explain(f"sigmas from {self.low} to {self.high}", "0 <= low <= high", "Correct the two noise levels")
            )

    def __call__(self, view: UnitView) -> bool:
        return self.low < view.step.sigma <= self.high


@part
@dataclass(frozen=True)
class UntilAlike:
    """Guides until the cosine of the two halves is above `bound` in every row, and then no more in this run.

    Read from the last guided step: one wait for the device a step, until it is reached. A bound of 1 is never reached.
    """

    bound: float
    looks = True

    def __post_init__(self) -> None:
        if not -1 <= self.bound <= 1:
            raise ConfigError(explain(f"bound={self.bound!r}", "a cosine from -1 to 1", "Correct the bound"))

    def __call__(self, view: UnitView) -> bool:
        if view.notes.get("alike", False):
            return False
        if not view.history or self.bound >= 1:
            return True
        view.notes["alike"] = float(cosines(view).min()) > self.bound
        return not view.notes["alike"]


def cosines(view: UnitView) -> Tensor:
    """Cosine [R] of the two halves of the last guided step, over the channels that the latents have."""
    past = view.history[-1]
    assert past.inputs is not None
    channels = view.inputs.shape[1]
    first, apart = past.inputs[:, :channels].flatten(1).float(), past.value[0][:, :channels].flatten(1).float()
    return torch.cosine_similarity(first, first - apart, dim=1)


@part
@dataclass(frozen=True)
class Guide(DenoisePlugin):
    """Guides some steps of a run and leaves the conditional half alone in the others."""

    method: str
    rule: Rule
    resource: str = field(default="GUIDANCE", repr=False)

    @property
    def name(self) -> str:
        return self.method

    @property
    def sites(self) -> tuple[DenoiseSite, ...]:
        return (GuidanceSite(),)

    @property
    def writes(self) -> frozenset[Resource]:
        return frozenset({Resource[self.resource]})

    @property
    def depth(self) -> int:
        return 1 if self.rule.looks else 0

    @property
    def sees_inputs(self) -> bool:
        return self.rule.looks

    def at(self, site: Any, view: UnitView) -> Any:
        return None if self.rule(view) else Unguided()


def check_fraction(name: str, value: object) -> None:
    """Raise `ConfigError` unless `value` is a number from 0 to 1."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ConfigError(explain(f"{name}={value!r}", "a fraction of the run, from 0 to 1", "Correct the fraction"))
