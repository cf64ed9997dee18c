"""From n_eq to a method's own knob, and back by measuring."""

import inspect

import pytest

from tests.contracts import kit
from tests.contracts.cases import LEARNED, METHOD_CASES, NEVER_KEEP_ALL, VIDEO_METHODS
from tests.tiny import tiny_inputs
from vlm_eff import methods
from vlm_eff.core.errors import ConfigError
from vlm_eff.tokens import for_budget

# what video methods get is in their own tests; pooling to a given grid and registers have no budget
BY_LAYOUT = {"adaptive_pool"}
METHODS = tuple(name for name in METHOD_CASES if name not in VIDEO_METHODS | BY_LAYOUT | LEARNED)
# one layer of 576 tokens: a token more or less at one stage moves n_eq by up to one
TARGETS = (64, 128, 192, 288, 400)
WIDE = {
    "atp": {"layers": (1, 2, 3)},
    "random_drop": {"layer": 0},
    "fastv": {"layer": 2},
    "pyramiddrop": {"layers": (2, 8, 16)},
    "v2drop": {"layers": (1, 2, 3), "schedule": "paper"},
    "lazyllm": {"layers": (1, 2, 3)},
}
# the knob is a layer: n_eq moves in steps of a layer's tokens
BY_LAYER = {"vtw"}
# the defaults cannot keep everything
NARROW = {"v2drop": {"schedule": "paper"}}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", METHODS)
def test_the_target_is_met_within_a_token(name: str, target: int) -> None:
    fixed = WIDE.get(name, {})
    if name == "feather":
        # at 32 layers the defaults let all tokens through a quarter of the decoder
        fixed, target = {"layers": (2, 8)}, max(target, 128)
    made = for_budget(name, n_eq=target, visual_tokens=576, num_layers=32, **fixed)
    assert abs(sum(made.asked(576, 32)) / 32 - target) <= (576 / 32 / 2 if name in BY_LAYER else 1)


@pytest.mark.parametrize("name", METHODS)
def test_more_budget_never_asks_for_less(name: str) -> None:
    asked = []
    for target in range(220, 561, 13):
        made = for_budget(name, n_eq=target, visual_tokens=576, num_layers=32, **NARROW.get(name, {}))
        asked.append(sum(made.asked(576, 32)))
    assert asked == sorted(asked)


@pytest.mark.parametrize("target", [9, 13, 17, 21])
@pytest.mark.parametrize("name", METHODS)
def test_what_was_asked_is_what_a_model_does(name: str, target: int) -> None:
    model, inputs = kit.model_of("llava"), tiny_inputs("llava")
    layers = {"feather": (1, 2), "pyramiddrop": (1, 2), "atp": (1, 2)} | dict.fromkeys(
        ("lazyllm", "sparsevlm", "v2drop"), (1, 2, 3)
    )
    movable = name not in BY_LAYER and "layer" in inspect.signature(methods()[name].make).parameters
    fixed = {"layers": layers[name]} if name in layers else {"layer": 1} if movable else {}
    fixed |= NARROW.get(name, {})
    made = for_budget(name, n_eq=target, visual_tokens=25, num_layers=kit.LAYERS, **fixed)
    last = kit.attached(model, inputs, made).handle.stats().last
    assert last is not None
    assert abs(last.n_eq_asked - target) <= (25 / kit.LAYERS / 2 if name in BY_LAYER else 1)
    if name == "average_pool":
        assert last.n_eq <= last.n_eq_asked
    elif name in ("feather", "atp"):
        # the grid may overlap the best tokens more or less than independent choices would
        assert abs(last.n_eq - last.n_eq_asked) <= 25 / 9
    else:
        assert last.n_eq == pytest.approx(last.n_eq_asked, abs=1e-9)


@pytest.mark.parametrize("target", [0.5, 30, 577, -3])
@pytest.mark.parametrize("name", ["fastv", "pyramiddrop", "feather"])
def test_a_target_out_of_reach_says_what_can_be_reached(name: str, target: float) -> None:
    with pytest.raises(ConfigError, match=rf"n_eq={target:g} for {name} with 576 tokens.*Accepted: .* to 576"):
        for_budget(name, n_eq=target, visual_tokens=576, num_layers=32)


def test_everything_can_be_asked_for() -> None:
    for name in sorted(set(METHODS) - NEVER_KEEP_ALL):
        made = for_budget(name, n_eq=576, visual_tokens=576, num_layers=32, **NARROW.get(name, {}))
        assert sum(made.asked(576, 32)) / 32 == 576


def test_an_unknown_method_or_argument_is_refused() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'fastv'"):
        for_budget("fastvv", n_eq=100, visual_tokens=576, num_layers=32)
    with pytest.raises(ConfigError, match="unknown"):
        for_budget("fastv", n_eq=100, visual_tokens=576, num_layers=32, depth=3)
