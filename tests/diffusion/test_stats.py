"""Reports of runs, against an independent count of the whole pipeline call."""

from __future__ import annotations

import json

import pytest
from torch.utils.flop_counter import FlopCounterMode

from tests.tiny.pipelines import TinyPipeline, tiny_pipeline
from vlm_eff import attach
from vlm_eff.core.plugin import Plugin
from vlm_eff.diffusion import cfg_cache, deepcache, first_block, fora, forecast, tome_sd

STEPS = 4
# plugins that save calls, blocks, modules, rows and tokens
SAVERS: list[tuple[str, Plugin]] = [
    ("sd", forecast(interval=2)),
    ("flux", forecast(interval=3)),
    ("sd", deepcache(interval=3)),
    ("sdxl", deepcache(interval=2, branch=1)),
    ("dit", first_block(0.9)),
    ("flux", first_block(0.9)),
    ("pixart", fora(interval=2)),
    ("sd", fora(interval=3)),
    ("dit", cfg_cache(interval=2, start=0.0)),
    ("flux", cfg_cache(interval=2, start=0.0)),
    ("pixart", tome_sd(min_tokens=0)),
    ("sd3", tome_sd(min_tokens=0)),
]


def counted(tiny: TinyPipeline) -> int:
    """FLOPs of all calls of the denoiser in one run, as torch counts them from outside."""
    with FlopCounterMode(display=False) as counter:
        tiny(STEPS)
    return int(sum(counter.get_flop_counts()[type(tiny.denoiser).__name__].values()))


@pytest.mark.parametrize(("family", "plugin"), SAVERS, ids=[f"{family}-{one.name}" for family, one in SAVERS])
def test_evaluations_are_those_that_were_made(family: str, plugin: Plugin) -> None:
    tiny = tiny_pipeline(family)
    bare = counted(tiny)
    with attach(tiny.pipe, plugin) as handle:
        # full calls of each shape are measured in the first run
        tiny(STEPS)
        spent = counted(tiny)
    run = handle.stats().runs[-1]
    assert run.flops_bare == pytest.approx(bare, rel=0.01)
    assert run.flops == pytest.approx(spent, rel=0.01)
    assert run.evaluations / run.evaluations_bare == pytest.approx(spent / bare, rel=0.01)
    assert run.evaluations < run.evaluations_bare


def test_reports_are_plain_values_and_lines() -> None:
    tiny = tiny_pipeline("flux")
    with attach(tiny.pipe, forecast(interval=2), tome_sd(min_tokens=0)) as handle:
        tiny(STEPS)
        tiny(3, guided=False)
        stats = handle.stats()
    made = json.loads(json.dumps(stats.to_dict()))
    assert [len(run["calls"]) for run in made["runs"]] == [8, 3]
    assert made["runs"][0]["scheduler"] == "FlowMatchEulerDiscreteScheduler"
    run = stats.runs[0]
    assert stats.runs[-1].line() in str(stats) and "2 runs" in str(stats)
    assert f"8 evaluations bare, {run.evaluations:.2f} computed" in run.line() and "in 4 steps" in run.line()
    assert f"{run.state_bytes:,} bytes kept" in run.line() and run.state_bytes > 0
    handle.reset()
    assert handle.stats().runs == [] and handle.stats().calls == 0
