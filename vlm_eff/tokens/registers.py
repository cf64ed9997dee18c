"""Register tokens as a plugin: what they start from, where they stand, when the visual tokens go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from vlm_eff.core.action import Action, Append, TakeOver
from vlm_eff.core.config import part
from vlm_eff.core.errors import ConfigError, explain
from vlm_eff.core.plugin import BindContext, Plugin, Site
from vlm_eff.core.resources import Resource
from vlm_eff.importance.keep import check_choice
from vlm_eff.models.learned import LearnedWeights, check_trained
from vlm_eff.models.view import View

_SPREAD = 0.02
Start = Literal["normal", "pooled"]


class RegisterWeights(LearnedWeights):
    """The register vectors [R, D]; with a pooled start, what is added to the mean of each region."""

    def __init__(self, registers: int, seed: int, context: BindContext, **facts: str | int) -> None:
        super().__init__(width=context.width, model_type=context.family, registers=registers, **facts)
        generator = torch.Generator().manual_seed(seed)
        start = torch.randn(registers, context.width, generator=generator) * _SPREAD
        # "pooled" begins at the means themselves
        self.registers = nn.Parameter(start if facts["init"] == "normal" else torch.zeros_like(start))


@part
@dataclass(frozen=True)
class RegisterReducer(Plugin):
    """Appends registers at the input of the first layer; at the input of `layer` they replace the visual tokens."""

    method: str
    registers: int
    layer: int
    weights: str | None = None
    init: Start = "normal"
    untrained: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("registers", 1), ("layer", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ConfigError(explain(f"{name}={value!r}", f"a whole number of at least {least}", f"Give {name}"))
        check_choice("init", self.init, ("normal", "pooled"))

    @property
    def name(self) -> str:
        return self.method

    @property
    def sites(self) -> tuple[Site, ...]:
        return Site(0), Site(self.layer)

    @property
    def writes(self) -> frozenset[Resource]:
        # a register shares its carrier's position: whoever takes the carrier out of attention would take both
        return frozenset({Resource.ENTRY_TOKENS, Resource.DECODER_TOKENS, Resource.ATTENTION_TOKENS})

    @property
    def trains(self) -> bool:
        return True

    def bind(self, context: BindContext) -> RegisterReducer:
        # the layer behind the last one: registers are there, and the visual tokens stay
        if self.layer != context.num_layers:
            context.check_layer(self.name, self.layer)
        return self

    def make_weights(self, context: BindContext) -> RegisterWeights:
        check_trained(self.name, self.weights, self.untrained, context)
        facts: dict[str, str | int] = {"method": self.name, "layer": self.layer, "init": self.init}
        made = RegisterWeights(self.registers, self.seed, context, **facts)
        if self.weights is not None:
            made.load(self.weights)
        return made

    def at(self, site: Site, view: View) -> Action | None:
        if site.layer == self.layer:
            return TakeOver()
        vectors = view.weights.registers
        hidden = vectors.expand(view.hidden.shape[0], -1, -1)
        if self.init == "pooled":
            hidden = hidden + region_means(view, self.registers)
        return Append(hidden, view.spans.count > 0)

    def asked(self, visual_tokens: int, num_layers: int) -> list[float]:
        registers = float(self.registers if visual_tokens else 0)
        return [visual_tokens + registers] * self.layer + [registers] * (num_layers - self.layer)


def region_means(view: View, count: int) -> Tensor:
    """Mean hidden state of each of `count` regions of a row's visual tokens [B, count, D].

    A single image whose grid is known is cut into rows and columns where `count` allows; otherwise the tokens are cut
    into equal pieces in sequence order.
    """
    spans = view.spans
    valid, group, y, x = (t.cpu().numpy() for t in (spans.valid, spans.group, spans.y, spans.x))
    region = np.full(valid.shape, count)
    for row in range(len(valid)):
        at = np.flatnonzero(valid[row])
        if len(at) >= count:
            region[row, at] = _regions(group[row, at], y[row, at], x[row, at], count)
    target = torch.from_numpy(region).to(view.hidden.device)
    hidden = view.visual_hidden().float()
    total = hidden.new_zeros(hidden.shape[0], count + 1, hidden.shape[2])
    total = total.scatter_add(1, target[:, :, None].expand_as(hidden), hidden)
    size = hidden.new_zeros(hidden.shape[0], count + 1).scatter_add(
        1, target, torch.ones_like(target, dtype=hidden.dtype)
    )
    return total[:, :count] / size[:, :count, None].clamp(min=1)


def _regions(group: np.ndarray, y: np.ndarray, x: np.ndarray, count: int) -> np.ndarray:
    """Region of each candidate of one row."""
    if y.min() >= 0 and len(np.unique(group)) == 1:
        height, width = int(y.max()) + 1, int(x.max()) + 1
        shapes = [(rows, count // rows) for rows in range(1, count + 1) if count % rows == 0]
        fitting = [(rows, columns) for rows, columns in shapes if rows <= height and columns <= width]
        if fitting and len(y) == height * width:
            # the squarest cells
            rows, columns = min(fitting, key=lambda cut: abs(np.log(height / cut[0] * cut[1] / width)))
            return (y * rows // height) * columns + x * columns // width
    return np.arange(len(y)) * count // len(y)


__all__ = ["RegisterReducer", "RegisterWeights", "region_means"]
