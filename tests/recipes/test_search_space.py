"""Numbers in, plugins out: budgets are met whatever the schedule."""

import random
from collections.abc import Sequence

import pytest

import vlm_eff
from vlm_eff.core.errors import ConfigError
from vlm_eff.recipes.search_space import DECODERS, ENTRIES, EVICTORS, FORMATS, Space
from vlm_eff.tokens.reducer import TokenReducer

SPACE = Space(num_layers=8, visual_tokens=144, prompt_tokens=156, tokens=0.4, cache=0.25)


class Dice:
    """Draws at random."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def choice(self, name: str, options: Sequence[str]) -> str:
        return self._random.choice(list(options))

    def whole(self, name: str, low: int, high: int) -> int:
        return self._random.randint(low, high)

    def real(self, name: str, low: float, high: float) -> float:
        return self._random.uniform(low, high)


def made(space: Space, count: int) -> list[tuple]:
    found = []
    for seed in range(count):
        params = space.draw(Dice(seed))
        try:
            found.append((params, space.plugins(params)))
        except ConfigError as error:
            assert "begins too late" in str(error)
    return found


def test_every_candidate_has_the_tokens_that_it_asks_for() -> None:
    found = made(SPACE, 40)
    assert len(found) > 25
    for params, plugins in found:
        asked = params["tokens"] * 0.4 * 144
        # no more than asked; whole tokens at each stage, and a pool that only knows some grids, may fall short
        assert asked - (16 if params.get("entry") == "average_pool" else 3) <= SPACE.n_eq(plugins) <= asked + 1, params
    assert made(SPACE, 3) == made(SPACE, 3)


def test_a_schedule_that_begins_too_late_is_refused() -> None:
    late = {"where": "decoder", "tokens": 0.8, "decoder": "fastv", "stages": 1, "first": 4, "step": 1, "drop_1": 1.0}
    with pytest.raises(ConfigError, match="begins too late"):
        SPACE.plugins(late)


def test_stages_share_the_drop_as_the_numbers_say() -> None:
    base = {"where": "decoder", "tokens": 1.0, "decoder": "pyramiddrop", "stages": 3, "first": 1, "step": 2}
    (plugin,) = SPACE.plugins(base | {"drop_1": 1.0, "drop_2": 0.05, "drop_3": 0.05})
    (other,) = SPACE.plugins(base | {"drop_1": 0.05, "drop_2": 1.0, "drop_3": 0.05})
    assert isinstance(plugin, TokenReducer) and isinstance(other, TokenReducer)
    assert [stage.layer for stage in plugin.stages] == [1, 3, 5]
    kept = [[stage.keep.ratio for stage in one.stages] for one in (plugin, other)]
    assert all(ratios == sorted(ratios, reverse=True) for ratios in kept)
    assert kept[0][0] < 0.5 < 0.8 < kept[1][0]


def test_a_search_begins_with_every_method_by_itself() -> None:
    tokens = Space(8, 144, 156, tokens=0.4).starts()
    assert {one.get("entry") or one["decoder"] for one in tokens} == {*ENTRIES, *DECODERS}
    assert all(SPACE.plugins(one) for one in tokens)
    both = SPACE.starts()
    assert {one["evict"] for one in both if "evict" in one} == {*EVICTORS}
    assert {one["bits"] for one in both if "bits" in one} == {*FORMATS}
    only = Space(8, 144, 156, cache=0.25)
    assert not any("where" in one for one in (*only.starts(), *(only.draw(Dice(seed)) for seed in range(5))))


def test_every_name_is_a_method() -> None:
    known = vlm_eff.methods()
    assert {*ENTRIES, *DECODERS, *EVICTORS, *(spec.partition(":")[0] for spec in FORMATS)} <= set(known)


@pytest.mark.parametrize("wrong", [{"tokens": 0.0}, {"cache": 1.5}, {}])
def test_a_space_of_nothing_is_refused(wrong: dict) -> None:
    with pytest.raises(ConfigError, match="Accepted"):
        Space(8, 144, 156, **wrong)
