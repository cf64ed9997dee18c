"""Arguments of the wrong kind to methods of the cache are answered with a sentence, never with an error from inside."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import timm
import torch

import vlm_eff
from tests.contracts.kit import model_of
from vlm_eff.core.errors import CapabilityError, CompiledModelError, ConfigError
from vlm_eff.kvcache import kivi, snapkv

_WHOLE, _SHARE = (-1, 1.5, "x", True), (2, -1, "x")
_WRONG: dict[str, tuple[Any, ...]] = {
    "keep_ratio": (0, 2, -1, "x", True), "keep_count": (0, *_WHOLE), "keep_bytes": (0, *_WHOLE),
    "keep_mass": (0, *_SHARE),
    "sinks": _WHOLE, "recent": _WHOLE, "recent_share": _SHARE, "every": (0, *_WHOLE), "window": (0, *_WHOLE),
    "kernel": (0, 2, "x"), "pool": ("x",), "rows": ("x", 0), "normalise": ("x",), "drop": (1, -1, "x"),
    "floor": _SHARE, "threshold": _SHARE, "adaptive_share": _SHARE, "merge": ("x",), "form": ("x",), "cross": (-1, "x"),
    "metric": ("x",), "weight": (-1, "x"), "of": ("x",), "bits": (0, 3, "x"), "group": (0, "x"), "residual": (-1, "x"),
    "high_bits": (3, "x"), "low_bits": (3, "x"), "tau": ("x", -1), "high_share": _SHARE, "bits_budget": ("x", -1),
    "levels": ((), ("x",), 5), "outliers": (1, "x"), "rank": (0, "x"), "energy": (0, 2, "x"), "modalities": (("x",), 5),
    "text_to_image": ("x", float("nan")), "only": ("x",), "beta": ("x", 0), "temperature": (0, "x"),
    "head_adaptive": ("x",), "per_head": ("x",), "faithful": ("x",), "centre": ("x",), "seed": ("x", 1.5),
    "random": (-1, "x"), "axis": ("x", 5), "text_axis": ("x", 5), "visual_axis": ("x", 5), "visual_bits": ("x",),
}  # fmt: skip
_CASES = [
    (name, argument, value)
    for name, row in vlm_eff.methods().items()
    if row.room in ("kvcache", "recipes")
    for argument in inspect.signature(row.make).parameters
    for value in _WRONG.get(argument, ())
]


@pytest.mark.parametrize(("name", "argument", "value"), _CASES)
def test_a_wrong_kind_of_argument_is_answered(name: str, argument: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=r"Accepted:"):
        vlm_eff.methods()[name].make(**{argument: value})


def test_there_are_cases_for_every_method() -> None:
    rooms = {name for name, row in vlm_eff.methods().items() if row.room in ("kvcache", "recipes")}
    assert {name for name, _, _ in _CASES} == rooms
    assert len(_CASES) > 350


@pytest.mark.parametrize("make", [snapkv, kivi])
def test_what_has_no_cache_or_no_hooks(make: Any) -> None:
    with pytest.raises(CapabilityError, match="vision tower alone"):
        vlm_eff.attach(timm.create_model("vit_tiny_patch16_224").eval(), make())
    with pytest.raises(CompiledModelError, match="compiled before attach"):
        vlm_eff.attach(torch.compile(model_of("llava")), make())
