"""Methods as values: spec strings, dicts, reprs, what they ask for and where."""

import json
from dataclasses import FrozenInstanceError, fields

import pytest

from tests.contracts.cases import EASY, HARD, METHOD_CASES
from vlm_eff import methods, plugin
from vlm_eff.core.config import from_dict
from vlm_eff.core.errors import ConfigError
from vlm_eff.core.plugin import BindContext, Plugin
from vlm_eff.core.resources import Resource
from vlm_eff.tokens import average_pool, fastv, feather, pyramiddrop, random_drop, uniform_grid
from vlm_eff.tokens.reducer import TokenReducer

SPECS: dict[str, Plugin] = {
    "fastv:layer=3,keep_ratio=0.25": fastv(layer=3, keep_ratio=0.25),
    "fastv:keep_count=144,positions=reindexed": fastv(keep_count=144, positions="reindexed"),
    "pyramiddrop:layers=(2,4,6),keep_ratio=0.4": pyramiddrop(layers=(2, 4, 6), keep_ratio=0.4),
    "feather:stride=2,layers=(4,9)": feather(stride=2, layers=(4, 9)),
    "random_drop:seed=7,keep_count=9": random_drop(seed=7, keep_count=9),
    "uniform_grid:keep_ratio=0.1,layer=2": uniform_grid(keep_ratio=0.1, layer=2),
    "average_pool:keep_ratio=0.25": average_pool(),
}
BOTH = [
    pytest.param(case, id=f"{name}-{kind}")
    for name, pair in METHOD_CASES.items()
    for case, kind in zip(pair, ("easy", "hard"), strict=True)
]
DEEP = BindContext("llava", 32)


@pytest.mark.parametrize("spec", SPECS)
def test_a_spec_builds_the_same_object(spec: str) -> None:
    assert plugin(spec) == SPECS[spec]


@pytest.mark.parametrize("name", METHOD_CASES)
def test_a_bare_name_is_the_method_with_its_defaults(name: str) -> None:
    assert plugin(name) == methods()[name].make()
    assert plugin(name).name == name


@pytest.mark.parametrize("case", BOTH)
def test_a_plugin_survives_json(case: Plugin) -> None:
    assert from_dict(json.loads(json.dumps(case.to_dict()))) == case
    bound = case.bind(DEEP)
    assert from_dict(bound.to_dict()) == bound
    assert hash(from_dict(case.to_dict())) == hash(case)


@pytest.mark.parametrize("case", BOTH)
def test_a_repr_shows_every_part(case: Plugin) -> None:
    if not isinstance(case, TokenReducer):
        assert all(f"{field.name}=" in repr(case) for field in fields(case))
        return
    for part in ("TokenReducer", "Stage(", "Keep(", "rounding=", "select=", "reduce=", "position_mode='kept'"):
        assert part in repr(case)


@pytest.mark.parametrize("case", BOTH)
def test_a_plugin_is_frozen(case: Plugin) -> None:
    with pytest.raises(FrozenInstanceError):
        case.method = "other"  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", METHOD_CASES)
def test_a_method_says_what_it_is(name: str) -> None:
    method = methods()[name]
    assert method.summary.endswith(".")
    assert method.room == "tokens"
    assert method.acts
    assert method.paper


def test_default_layers_are_those_of_the_papers() -> None:
    assert [site.layer for site in pyramiddrop().bind(DEEP).sites] == [8, 16, 24]
    assert [site.layer for site in feather().bind(DEEP).sites] == [8, 16]
    assert [site.layer for site in fastv().sites] == [2]


def test_layer_zero_writes_the_entry_alone() -> None:
    assert EASY["random_drop"].bind(DEEP).writes == {Resource.ENTRY_TOKENS}
    assert HARD["random_drop"].bind(DEEP).writes == {Resource.DECODER_TOKENS}


def test_a_decoder_too_shallow_for_the_default_stages_says_so() -> None:
    with pytest.raises(ConfigError, match="too shallow"):
        pyramiddrop().bind(BindContext("llava", 2))


def test_what_is_asked_follows_the_schedule() -> None:
    assert pyramiddrop(layers=(2, 4)).asked(25, 6) == [25, 25, 12, 12, 6, 6]
    assert fastv(keep_ratio=0.5).asked(25, 4) == [25, 25, 13, 13]
    assert random_drop(keep_count=9).asked(25, 2) == [9, 9]
    assert pyramiddrop().asked(0, 32) == [0] * 32
    # 576 tokens, PyramidDrop's defaults: the 270 that the paper's table counts
    assert sum(pyramiddrop().asked(576, 32)) / 32 == 270


def test_keeping_everything_observes_nothing() -> None:
    assert pyramiddrop(keep_ratio=1.0).bind(DEEP).needs == ()
    assert len(pyramiddrop().bind(DEEP).needs) == 3
