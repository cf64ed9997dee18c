"""Ways of drawing the same pictures cheaper: our methods, fewer steps, and what others offer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import diffusers

import vlm_eff

from . import peers

STEPS = 20
Opened = Callable[[Any], AbstractContextManager[Any]]


@dataclass(frozen=True)
class Arm:
    """One row of the table.

    label: what is shown       kind: "ours", "fewer steps", "diffusers" or "peer"
    opened: puts it on a pipeline, and takes it off again       steps: of the scheduler
    """

    label: str
    kind: str
    opened: Opened
    steps: int = STEPS


def plugin(spec: str) -> Arm:
    """One of our methods, by its spec."""
    return Arm(spec, "ours", lambda pipe: vlm_eff.attach(pipe, *(vlm_eff.plugin(one) for one in spec.split(" + "))))


@contextmanager
def bare(pipe: Any) -> Iterator[None]:
    """The pipeline as it is."""
    yield


def with_solver(name: str) -> Opened:
    """Another scheduler of diffusers, by class name without "Scheduler"."""

    @contextmanager
    def opened(pipe: Any) -> Iterator[None]:
        before = pipe.scheduler
        pipe.scheduler = getattr(diffusers, f"{name}Scheduler").from_config(before.config)
        try:
            yield
        finally:
            pipe.scheduler = before

    return opened


def fewer(solver: str, steps: int) -> Arm:
    """Fewer steps, and nothing else."""
    return Arm(f"{steps} steps of {solver}", "fewer steps", with_solver(solver), steps)


SHARED = [
    Arm("20 steps of DPMSolverMultistep", "full", bare),
    *(fewer(solver, steps) for solver in ("DPMSolverMultistep", "UniPCMultistep") for steps in (14, 10, 7, 5)),
    *(plugin(f"forecast:evaluations={count}") for count in (14, 10, 7, 5)),
    *(plugin(f"forecast:evaluations={count},order=2") for count in (10, 7)),
    *(plugin(f"forecast:evaluations={count},axis=log_snr") for count in (10, 7)),
    *(plugin(f"forecast:evaluations={count},order=0") for count in (10, 7, 5)),
    *(plugin(f"easycache:threshold={value}") for value in (0.05, 0.2, 0.5)),
    plugin("easycache:threshold=0.2,faithful=True"),
    *(plugin(f"cfg_cache:interval={value}") for value in (2, 5)),
    plugin("adaptive_guidance"),
    *(plugin(f"fora:interval={value}") for value in (2, 3)),
    *(plugin(f"taylorseer:interval={value}") for value in (2, 3)),
    plugin("pab"),
    plugin("fastercache"),
    plugin("tome_sd:ratio=0.5,min_tokens=0"),
    plugin("forecast:evaluations=10 + cfg_cache:interval=2"),
]
UNET = [
    *SHARED,
    plugin("tgate"),
    plugin("tgate:unguided=False"),
    *(plugin(f"deepcache:interval={value}") for value in (2, 3, 4)),
    Arm("DeepCache 0.1.1, interval 2", "peer", peers.deep_cache(2)),
    Arm("DeepCache 0.1.1, interval 3", "peer", peers.deep_cache(3)),
    Arm("tomesd 0.1.3, ratio 0.5", "peer", peers.tome_sd(0.5)),
]
DIT = [
    *SHARED,
    *(plugin(f"first_block:threshold={value}") for value in (0.05, 0.1, 0.2)),
    *(Arm(f"diffusers FirstBlockCache, {value}", "diffusers", peers.first_block(value)) for value in (0.05, 0.1, 0.2)),
    Arm("diffusers TaylorSeerCache, interval 3", "diffusers", peers.taylor_seer(3)),
    Arm("cache-dit DBCache, threshold 0.1", "peer", peers.cache_dit(0.1)),
]
ARMS = {"small-unet": UNET, "small-dit": DIT}
