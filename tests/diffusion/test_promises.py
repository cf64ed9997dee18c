"""What every method promises, on every tiny pipeline."""

import pytest

from tests.diffusion import checks
from tests.diffusion.cases import CASES, PAIRS, REFUSED
from tests.tiny.pipelines import PIPELINES, SCHEDULERS, SEQUENTIAL, tiny_pipeline, with_scheduler
from vlm_eff import attach
from vlm_eff.core.errors import CapabilityError
from vlm_eff.core.plugin import Plugin
from vlm_eff.diffusion import cfg_cache, easycache, forecast

# caches of the denoiser's own output
WHOLE = [forecast(interval=2, order=0), forecast(interval=2), cfg_cache(2, start=0.0), easycache(0.9, warm_up=2)]
# of each promise about runs that meet: these many of a method's pipelines, in turns
FEW = 2


def few(start: int) -> list[tuple[str, str]]:
    """(family, method): every method on `FEW` of its pipelines, and every pipeline with some method."""
    made = []
    for place, (name, case) in enumerate(CASES.items()):
        count = min(FEW, len(case.families))
        made += [(case.families[(start + place + turn * 3) % len(case.families)], name) for turn in range(count)]
    return list(dict.fromkeys(made))


# every method under half of the schedulers, in turns
SCHEDULED = [
    (name, scheduler)
    for place, name in enumerate(name for name, case in CASES.items() if "sd" in case.families)
    for scheduler in SCHEDULERS[place % 2 :: 2]
]
EXACT = [(family, name) for family, name in PAIRS if CASES[name].nothing is not None]


@pytest.mark.parametrize(("family", "name"), EXACT)
def test_nothing_is_bit_identical(family: str, name: str) -> None:
    plugin = CASES[name].nothing
    assert plugin is not None
    checks.nothing_is_bit_identical(tiny_pipeline(family), plugin)


@pytest.mark.parametrize(("family", "name"), PAIRS)
def test_it_changes_something_and_says_so(family: str, name: str) -> None:
    checks.it_changes_something_and_says_so(tiny_pipeline(family), CASES[name].changes, CASES[name].primed)


@pytest.mark.parametrize(("family", "name"), PAIRS)
def test_detach_restores(family: str, name: str) -> None:
    checks.detach_restores(tiny_pipeline(family), CASES[name].changes)


@pytest.mark.parametrize(("family", "name"), PAIRS)
def test_every_run_is_the_same(family: str, name: str) -> None:
    checks.every_run_is_the_same(tiny_pipeline(family), CASES[name].changes)


@pytest.mark.parametrize("start", range(3))
def test_few_meet_every_method_and_every_pipeline(start: int) -> None:
    assert {name for _, name in few(start)} == set(CASES)
    assert {family for family, _ in few(start)} == set(PIPELINES)


@pytest.mark.parametrize(("family", "name"), few(0))
def test_an_interrupted_run_harms_nothing(family: str, name: str) -> None:
    checks.an_interrupted_run_harms_nothing(tiny_pipeline(family), CASES[name].changes)


@pytest.mark.parametrize(("family", "name"), few(1))
def test_two_pipelines_do_not_meet(family: str, name: str) -> None:
    checks.two_pipelines_do_not_meet(family, CASES[name].changes)


@pytest.mark.parametrize(("family", "name"), few(2))
def test_paused_is_bare(family: str, name: str) -> None:
    checks.paused_is_bare(tiny_pipeline(family), CASES[name].changes)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if "sd" in case.families and case.nothing])
def test_nothing_is_bit_identical_under_every_scheduler(name: str, scheduler: str) -> None:
    plugin = CASES[name].nothing
    assert plugin is not None
    checks.nothing_is_bit_identical(with_scheduler(tiny_pipeline("sd"), scheduler), plugin)


def test_every_scheduler_is_met() -> None:
    assert {scheduler for _, scheduler in SCHEDULED} == set(SCHEDULERS)


@pytest.mark.parametrize(("name", "scheduler"), SCHEDULED)
def test_it_runs_under_every_scheduler(name: str, scheduler: str) -> None:
    tiny = with_scheduler(tiny_pipeline("sd"), scheduler)
    # what detaching leaves does not depend on the scheduler's arithmetic: asked above, and in test_samplers
    checks.every_run_is_the_same(tiny, CASES[name].changes)


@pytest.mark.parametrize(("family", "name"), REFUSED)
def test_other_pipelines_refuse_it(family: str, name: str) -> None:
    with checks.unchanged(tiny_pipeline(family)), pytest.raises(CapabilityError):
        attach(tiny_pipeline(family).pipe, CASES[name].changes)


@pytest.mark.parametrize("family", SEQUENTIAL)
def test_each_branch_is_its_own(family: str) -> None:
    checks.each_branch_is_its_own(tiny_pipeline(family), forecast(interval=2, order=0))


@pytest.mark.parametrize("plugin", WHOLE, ids=lambda plugin: plugin.name)
def test_nobody_writes_into_what_is_kept(plugin: Plugin) -> None:
    for family in ("sd", "wan"):
        checks.nobody_writes_into_what_is_kept(tiny_pipeline(family), plugin)
