"""What a unit returns when it is not computed, from what it returned before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vlm_eff.core.config import part
from vlm_eff.core.errors import CapabilityError, explain
from vlm_eff.diffusion.policies import check_count
from vlm_eff.importance.keep import check_choice
from vlm_eff.models.denoise.view import UnitView

Axis = Literal["index", "sigma", "log_snr"]
AXES = ("index", "sigma", "log_snr")


@part
@dataclass(frozen=True)
class Reuse:
    """What was computed last."""

    depth = 1
    sees_inputs = False

    def __call__(self, view: UnitView) -> tuple[Tensor, ...]:
        return tuple(value.clone() for value in view.history[-1].value)


@part
@dataclass(frozen=True)
class AddOffset:
    """What the unit is called with, and by how much its last output differed from what it was called with then.

    Of a `DenoiserSite` whose output has the shape of its latents.
    """

    depth = 1
    sees_inputs = True

    def __call__(self, view: UnitView) -> tuple[Tensor, ...]:
        last = view.history[-1]
        assert last.inputs is not None
        if last.inputs.shape != last.value[0].shape:
            shapes = f"outputs {tuple(last.value[0].shape)} of latents {tuple(last.inputs.shape)}"
            raise CapabilityError(explain(shapes, "outputs of one shape with the latents", "Use faithful=False"))
        return (view.inputs + (last.value[0] - last.inputs),)


@part
@dataclass(frozen=True)
class Polynomial:
    """The polynomial of degree `order` through what was computed last, continued to this step.

    As long as fewer than order + 1 outputs are known, or two of them lie at one place of the axis, the degree is lower.

    axis: "index" of the step, "sigma" or "log_snr"
    """

    order: int = 1
    axis: Axis = "index"
    sees_inputs = False

    def __post_init__(self) -> None:
        check_count("order", self.order, 0)
        check_choice("axis", self.axis, AXES)

    @property
    def depth(self) -> int:
        return self.order + 1

    def __call__(self, view: UnitView) -> tuple[Tensor, ...]:
        past = view.history[-self.depth :]
        places = [one.abscissa(self.axis) for one in past]
        here = float(getattr(view.step, self.axis))
        rows = [continue_to(here, [place[row] for place in places]) for row in range(len(places[0]))]
        return tuple(weighted([one.value[stream] for one in past], rows) for stream in range(len(past[-1].value)))


def continue_to(here: float, places: list[float]) -> list[float]:
    """Weights of values at `places` (oldest first) in the polynomial through them, at `here`.

    Places that occur again later weigh nothing.
    """
    weights = [0.0] * len(places)
    kept = [i for i, place in enumerate(places) if place not in places[i + 1 :]]
    for i in kept:
        weights[i] = 1.0
        for j in kept:
            if j != i:
                weights[i] *= (here - places[j]) / (places[i] - places[j])
    return weights


def weighted(values: list[Tensor], rows: list[list[float]]) -> Tensor:
    """Sum of values [R, ...] with weights that each row has of its own, in float32."""
    if all(row == rows[0] for row in rows):
        made = sum(w * value.float() for w, value in zip(rows[0], values, strict=True) if w != 0.0)
        assert isinstance(made, Tensor)
        return made.to(values[0].dtype)
    table = torch.tensor(rows, dtype=torch.float32, device=values[0].device)
    made = torch.zeros_like(values[0], dtype=torch.float32)
    for number, value in enumerate(values):
        made += table[:, number].view(-1, *[1] * (value.dim() - 1)) * value.float()
    return made.to(values[0].dtype)
