"""A plugin before the language model and one inside it, on every family, whatever the order of attaching."""

import pytest

from tests.contracts import checks_together as checks
from tests.contracts.cases import HARD
from tests.contracts.kit import model_of
from tests.tiny import FAMILIES
from vlm_eff import attach
from vlm_eff.core.errors import ConflictError
from vlm_eff.core.plugin import Plugin
from vlm_eff.tokens import divprune, fastervlm, hired, uniform_grid

ENTRY: dict[str, Plugin] = {
    "divprune": divprune(keep_ratio=0.7),
    "fastervlm": fastervlm(keep_ratio=0.7),
    "hired": hired(keep_ratio=0.7),
    "uniform_grid": uniform_grid(keep_ratio=0.7),
}
LATER = ("pyramiddrop", "feather", "atp")
FEW = ("llava", "llava_next", "qwen3_vl", "gemma3")


def together() -> list[tuple[str, str, str]]:
    """Every two plugins on the few families; elsewhere each plugin before the language model with one of the others."""
    made = [(family, entry, later) for family in FEW for entry in ENTRY for later in LATER]
    for row, family in enumerate(family for family in FAMILIES if family not in FEW):
        made += [(family, entry, LATER[(row + place) % len(LATER)]) for place, entry in enumerate(ENTRY)]
    return made


def test_every_plugin_meets_every_family() -> None:
    for place, plugins in ((1, ENTRY), (2, LATER)):
        assert {(case[0], case[place]) for case in together()} == {(one, two) for one in FAMILIES for two in plugins}


@pytest.mark.parametrize(("family", "entry", "later"), together())
def test_two_plugins_equal_masking(family: str, entry: str, later: str) -> None:
    checks.plugins_together_equal_masking(family, ENTRY[entry], HARD[later])


@pytest.mark.parametrize("entry", ENTRY)
@pytest.mark.parametrize("family", FEW)
def test_two_plugins_equal_masking_with_padding_behind(family: str, entry: str) -> None:
    checks.plugins_together_equal_masking(family, ENTRY[entry], HARD["pyramiddrop"], "right")


@pytest.mark.parametrize("entry", ENTRY)
@pytest.mark.parametrize("family", FAMILIES)
def test_two_plugins_decode_as_masked(family: str, entry: str) -> None:
    checks.plugins_together_decode_as_masked(family, ENTRY[entry], HARD["pyramiddrop"])


@pytest.mark.parametrize("second", ["hired", "uniform_grid"])
def test_two_reductions_at_one_place_are_refused(second: str) -> None:
    with pytest.raises(ConflictError, match="divprune"):
        attach(model_of("llava"), ENTRY["divprune"], ENTRY[second])
