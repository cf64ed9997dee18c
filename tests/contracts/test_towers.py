"""Contracts of plugins inside the vision tower, on every family."""

import pytest

from tests.contracts import checks_towers as checks
from tests.contracts.tower_cases import TOWER_CASES, TOWER_HARD, TOWER_NOTHING
from tests.tiny import FAMILIES
from vlm_eff.core.plugin import Plugin
from vlm_eff.tokens import evit

METHODS = tuple(TOWER_CASES)
MERGES = ("tome",)
# reduces what the decoder sees as well, so that it goes with no other method there, and saves more than the tower
ALONE = tuple(name for name in METHODS if name != "pixelprune")
DROPS = ("zero_tprune", "evit")


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_is_bit_identical(family: str, attn: str, name: str) -> None:
    checks.nothing_is_bit_identical(family, attn, TOWER_NOTHING[name])


@pytest.mark.parametrize("name", MERGES)
@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_merging_equals_copies_of_the_mean(family: str, attn: str, name: str) -> None:
    for plugin in TOWER_CASES[name]:
        checks.full_length_oracle(family, attn, plugin)


@pytest.mark.parametrize("plugin", [TOWER_HARD["zero_tprune"], evit(0.45, blocks=(0, 2), fuse=False)], ids=DROPS)
@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_dropping_equals_hiding(family: str, attn: str, plugin: Plugin) -> None:
    checks.drop_equals_hiding(family, attn, plugin)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("pad", ["left", "right"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_equals_its_rows(family: str, pad: str, name: str) -> None:
    checks.tower_batch_equals_rows(family, TOWER_HARD[name], pad)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("family", FAMILIES)
def test_eager_equals_sdpa(family: str, name: str) -> None:
    checks.tower_eager_equals_sdpa(family, TOWER_HARD[name])


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("family", FAMILIES)
def test_detach_restores(family: str, name: str) -> None:
    checks.tower_detach_restores(family, TOWER_HARD[name])


@pytest.mark.parametrize("name", MERGES)
@pytest.mark.parametrize("family", FAMILIES)
def test_sizes_are_conserved(family: str, name: str) -> None:
    checks.sizes_are_conserved(family, TOWER_HARD[name])


@pytest.mark.parametrize("name", ALONE)
@pytest.mark.parametrize("family", FAMILIES)
def test_flops_are_measured(family: str, name: str) -> None:
    checks.flops_are_measured(family, TOWER_HARD[name])


@pytest.mark.parametrize("name", ALONE)
@pytest.mark.parametrize("family", FAMILIES)
def test_composes_with_the_other_rooms(family: str, name: str) -> None:
    checks.composes(family, TOWER_HARD[name])


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("family", FAMILIES)
def test_generation_equals_forward(family: str, name: str) -> None:
    checks.generation_equals_forward(family, TOWER_HARD[name])
