"""Arguments of the wrong kind are answered with a sentence, never with an error from inside."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

import vlm_eff
from vlm_eff.core.errors import CapabilityError, ConfigError
from vlm_eff.core.plugin import BindContext

_WRONG: dict[str, tuple[Any, ...]] = {
    "keep_ratio": (0, 2, -1, "x", True),
    "keep_mass": (0, 2, "x"),
    "keep_count": (0, -1, 1.5, "x"),
    "layer": (-1, "x", 1.5),
    "layers": ("x", (3, 2), 5),
    "positions": ("nope",),
    "tau": (-1, "x"),
    "temperature": ("x", 0),
    "r": (-1, "x", 1.5, object()),
    "r_ratio": (2, -1, "x"),
    "std": ((1, "x", 1), (0, 1, 1)),
    "registers": (0, "x"),
    "overview": (2, "x"),
    "block": ("x", 99),
    "stride": (0, "x"),
    "merge_ratio": (0, 2, "x"),
}
_CASES = [
    (name, argument, value)
    for name, row in vlm_eff.methods().items()
    if row.room == "tokens"
    for argument in inspect.signature(row.make).parameters
    for value in _WRONG.get(argument, ())
]


@pytest.mark.parametrize(("name", "argument", "value"), _CASES)
def test_a_wrong_kind_of_argument_is_answered(name: str, argument: str, value: Any) -> None:
    context = BindContext("test", num_layers=8, num_blocks=12, class_token=True, width=64)
    with pytest.raises((ConfigError, CapabilityError), match=r"Accepted:"):
        plugin = vlm_eff.methods()[name].make(**{argument: value}).bind(context)
        context.check_needs(plugin.name, plugin.needs)


def test_there_are_cases() -> None:
    assert len(_CASES) > 100
    assert {name for name, _, _ in _CASES} > {"tome", "fastv", "visionzip", "fastvid", "victor"}


def test_sparsevlm_wants_a_yes_or_no() -> None:
    with pytest.raises(ConfigError, match="faithful"):
        vlm_eff.methods()["sparsevlm"].make(faithful="x")
