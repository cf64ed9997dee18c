"""Settings of every method of the room for `test_promises`: one that changes nothing, one that does."""

from __future__ import annotations

from dataclasses import dataclass

from tests.tiny.pipelines import PIPELINES, UNETS
from vlm_eff.core.plugin import Plugin
from vlm_eff.diffusion import (
    adaptive_guidance,
    cfg_cache,
    deepcache,
    easycache,
    fastercache,
    first_block,
    fora,
    forecast,
    guidance_interval,
    magcache,
    pab,
    prompt_cache,
    sampler,
    taylorseer,
    teacache,
    tgate,
    tome_sd,
)
from vlm_eff.diffusion.calibration import ChangeCurve, MagnitudeTable, Provenance


@dataclass(frozen=True)
class Case:
    """nothing: must be bit-identical to the bare pipeline; None where no setting is

    changes:  must run, and change something
    families: pipelines that carry the method; the others must refuse it at attach
    primed:   changes something from the second run on
    """

    nothing: Plugin | None
    changes: Plugin
    families: tuple[str, ...] = PIPELINES
    primed: bool = False


TRANSFORMERS = tuple(family for family in PIPELINES if family not in UNETS)

# fit any model: a residual changes as the modulated input does, and its size hardly
CURVE = ChangeCurve((0.0, 10.0), (0.0, 10.0), Provenance())
TABLE = MagnitudeTable(((1.0, 1.01, 1.02, 0.99, 0.98, 1.01),), Provenance())

CASES: dict[str, Case] = {
    "deepcache": Case(deepcache(interval=1), deepcache(interval=2), UNETS),
    "easycache": Case(easycache(threshold=0.0, warm_up=1), easycache(threshold=0.9, warm_up=2)),
    "first_block": Case(first_block(threshold=0.0), first_block(threshold=0.9), TRANSFORMERS),
    "adaptive_guidance": Case(adaptive_guidance(bound=1.0), adaptive_guidance(bound=-1.0)),
    "cfg_cache": Case(cfg_cache(interval=1), cfg_cache(interval=2, start=0.0)),
    "guidance_interval": Case(guidance_interval(0.0, 1.0), guidance_interval(0.2, 0.8)),
    "fastercache": Case(
        fastercache(interval=1, guidance_interval=1), fastercache(start=0.1, guidance_start=0.5, split="none")
    ),
    "pab": Case(pab(spatial=1, temporal=1, cross=1), pab()),
    "tgate": Case(tgate(gate=1.0, interval=1), tgate(interval=2), ("sd", "sdxl", "pixart", "wan")),
    "fora": Case(fora(interval=1), fora(interval=2)),
    "forecast": Case(forecast(interval=1), forecast(interval=2)),
    "prompt_cache": Case(prompt_cache(tiers=()), prompt_cache(tiers=((0.9, 0.5),)), primed=True),
    # families of flow matching have solvers of their own: test_samplers.py
    "sampler": Case(sampler("present"), sampler("pndm"), ("sd", "sdxl", "dit", "pixart")),
    "tome_sd": Case(tome_sd(ratio=0.0, min_tokens=0), tome_sd(min_tokens=0)),
    "taylorseer": Case(taylorseer(interval=1), taylorseer(interval=2, warm_up=2)),
    "magcache": Case(magcache(TABLE, threshold=0.0), magcache(TABLE, threshold=0.2), TRANSFORMERS),
    "teacache": Case(teacache(CURVE, threshold=0.0), teacache(CURVE, threshold=0.9), TRANSFORMERS),
}
PAIRS = [(family, name) for name, case in CASES.items() for family in case.families]
REFUSED = [(family, name) for name, case in CASES.items() for family in PIPELINES if family not in case.families]
