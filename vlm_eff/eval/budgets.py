"""Several methods at equal budgets, for one kind of question."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from vlm_eff.core.errors import ConfigError, explain
from vlm_eff.core.plugin import BindContext, Plugin, Site
from vlm_eff.core.registry import METHODS
from vlm_eff.eval.subject import Subject
from vlm_eff.models.attach import attach
from vlm_eff.tokens import for_budget, settings_for_budget, uniform_grid


@dataclass(frozen=True)
class Setting:
    """A method with the setting that reaches a budget; `n_eq` is what was asked for, None leaves it to the method."""

    method: str
    n_eq: float | None
    plugin: Plugin

    @property
    def label(self) -> str:
        """How tables name it."""
        return self.method if self.n_eq is None else f"{self.method} @ {self.n_eq:g}"


@dataclass(frozen=True)
class Sizes:
    """Visual tokens that enter the language model for one question, and the layers they pass."""

    visual_tokens: int
    num_layers: int


def sizes_of(subject: Subject, images: Sequence[Image.Image], prompt: str) -> Sizes:
    """Count visual tokens and layers by one forward pass that keeps everything."""
    inputs = subject.inputs(images, prompt)
    with attach(subject.model, uniform_grid(keep_ratio=1.0)) as handle, torch.inference_mode():
        subject.model(**inputs)
    report = handle.stats().last
    assert report is not None  # inputs() refuses a question without a picture
    return Sizes(round(report.visual_tokens), len(report.visual_per_layer))


def settings_at(sizes: Sizes, methods: Sequence[str], shares: Sequence[float]) -> list[Setting]:
    """Each method at each budget, given as a share of the visual tokens, averaged over layers.

    Raises:
        ConfigError: an unknown method, or a budget that a method cannot reach.
    """
    made = []
    for share in shares:
        n_eq = round(share * sizes.visual_tokens)
        for method in methods:
            plugin = for_budget(method, n_eq=n_eq, visual_tokens=sizes.visual_tokens, num_layers=sizes.num_layers)
            made.append(Setting(method, n_eq, plugin))
    return made


def reach(method: str, n_eq: float, sizes: Sizes) -> Plugin:
    """The method at a budget, see `reach_settings`."""
    made: Plugin = METHODS.get(method).make(**reach_settings(method, n_eq, sizes))
    return made


def reach_settings(method: str, n_eq: float, sizes: Sizes) -> dict[str, Any]:
    """Settings that bring a method to a budget: with its default layers, or moved forward so that it begins at layer 1.

    A deep decoder leaves room for layers that see every token; with few layers a small budget is only met by a method
    that begins early. It is moved forward when its first layers alone use up two thirds of the budget: what it could
    keep afterwards would be next to nothing. A method without a ratio is set by its layer.

    Raises:
        ConfigError: not even then can it be reached.
    """
    visual, layers = sizes.visual_tokens, sizes.num_layers
    known = inspect.signature(METHODS.get(method).make).parameters
    if "keep_ratio" not in known and "layer" in known:
        return _by_layer(method, n_eq, sizes)
    fixed: dict[str, Any] = {}
    try:
        for_budget(method, n_eq=n_eq * 2 / 3, visual_tokens=visual, num_layers=layers)
    except ConfigError:
        fixed = _from_layer_one(method, layers)
    return settings_for_budget(method, n_eq=n_eq, visual_tokens=visual, num_layers=layers, **fixed)


def _by_layer(method: str, n_eq: float, sizes: Sizes) -> dict[str, Any]:
    made = []
    for layer in range(1, sizes.num_layers):
        bound = METHODS.get(method).make(layer=layer).bind(BindContext("budget", sizes.num_layers))
        made.append((sum(bound.asked(sizes.visual_tokens, sizes.num_layers)) / sizes.num_layers, layer))
    reached, layer = min(made, key=lambda found: abs(found[0] - n_eq))
    if abs(reached - n_eq) > 1:
        counts = ", ".join(f"{count:g}" for count, _ in made)
        raise ConfigError(explain(f"n_eq={n_eq:g} for {method}", counts, "Choose one of these"))
    return {"layer": layer}


def _from_layer_one(method: str, num_layers: int) -> dict[str, Any]:
    """Arguments that move the first stage to layer 1; none for a method whose layers cannot be given."""
    make = METHODS.get(method).make
    known = inspect.signature(make).parameters
    sites = make().bind(BindContext("budget", num_layers)).sites
    layers = [site.layer for site in sites if isinstance(site, Site)]
    if not layers or layers[0] < 1:
        return {}
    if "layers" in known:
        return {"layers": tuple(layer - layers[0] + 1 for layer in layers)}
    return {"layer": 1} if "layer" in known else {}
