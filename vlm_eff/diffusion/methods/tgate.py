"""T-GATE."""

from __future__ import annotations

from vlm_eff.core.denoise import ModuleSite
from vlm_eff.core.registry import method
from vlm_eff.diffusion.gate import Gated, GuidedToGate
from vlm_eff.diffusion.guidance import Guide
from vlm_eff.diffusion.predictors import Reuse
from vlm_eff.diffusion.step_cache import StepCache
from vlm_eff.diffusion.together import Together


@method(room="diffusion", acts="attention of blocks, half of the guidance", paper="arXiv:2404.02747")
def tgate(gate: float = 0.4, warm_up: int = 2, interval: int = 5, unguided: bool = True) -> Together | StepCache:
    """Reuses cross attention behind a gate in the run, and self attention in front of it; the rest is unguided.

    Args:
        gate:     share of the run's steps up to which prompt and guidance matter; 1 is never reached
        warm_up:  steps at the beginning in which all is computed, at least 1
        interval: self attention every `interval`-th step between warm-up and gate; 1 computes all
        unguided: give up the unconditional half behind the gate, as published

    Paper arXiv:2404.02747, section 4, settings of its code (gate 10 of 25 steps, warm-up 2, self attention every 5).
    The code keeps the mean of both halves' cross attention at the gate. Here halves are never mixed: it is that of
    the conditional half, which in batches is computed once more, at the step behind the gate.

    Saves cross attention behind the gate and half of the denoiser there, and self attention in front of it; keeps
    one output of each attention. Runs without guidance end with the warning `NoGuidance`: use `unguided=False` there.

    Raises:
        ConfigError: a gate outside of 0 to 1, or a count below 1.
        CapabilityError: at attach, where the denoiser has no cross attention; unguided, a pipeline that calls for the
            unconditional branch before the conditional one (in the run).
    """
    site = ModuleSite(("self", "cross"), ("cross",))
    attention = StepCache("tgate", site, Gated(gate, warm_up, interval), Reuse(), warm_up=warm_up)
    return Together("tgate", (attention, Guide("tgate", GuidedToGate(gate)))) if unguided else attention
