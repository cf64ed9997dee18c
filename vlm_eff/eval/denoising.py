"""One request to a diffusion pipeline, bare, with each of several plugins, and with fewer steps at the same cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from vlm_eff.core.denoise_report import DenoiseReport
from vlm_eff.core.errors import ConfigError, explain
from vlm_eff.core.plugin import Plugin
from vlm_eff.eval.generated import psnr
from vlm_eff.eval.measure import PairedTimes, paired_times
from vlm_eff.eval.painter import Painter
from vlm_eff.models.attach import attach
from vlm_eff.reference.machine import describe_device

FEWER = "fewer steps"


@dataclass(frozen=True)
class DenoiseArm:
    """One plugin, or fewer steps, beside the full run.

    evaluations: equivalent full evaluations of the denoiser, of `evaluations_bare`
    computed:    share of each step that was computed, mean over guidance branches
    psnr:        of the pictures to those of the full run, dB; infinite when they are the same
    state_bytes: kept between steps, at most
    time:        with the plugin / bare, in pairs; None when nothing was timed
    """

    plugin: str
    evaluations: float
    evaluations_bare: float
    computed: tuple[float, ...]
    psnr: float
    state_bytes: int
    time: PairedTimes | None


@dataclass(frozen=True)
class DenoiseComparison:
    """A request and its arms; `pictures` [B, 3, H, W] of the full run first, then of the arms in order."""

    model: str
    scheduler: str
    steps: int
    guidance: float
    seed: int
    arms: tuple[DenoiseArm, ...]
    pictures: tuple[Tensor, ...]
    device: str

    def to_dict(self) -> dict[str, Any]:
        """Plain dict for JSON, without pictures."""
        made = {name: getattr(self, name) for name in ("model", "scheduler", "steps", "guidance", "seed", "device")}
        return made | {"arms": [asdict(arm) for arm in self.arms]}


def compare_denoising(
    painter: Painter,
    plugins: Mapping[str, Plugin],
    *,
    steps: int = 20,
    guidance: float = 4.0,
    seed: int = 0,
    pairs: int = 0,
) -> DenoiseComparison:
    """Draw one request in full, with each plugin, and in as many steps as each plugin cost evaluations.

    The rows of fewer steps are the honest rival: they cost the same and need no plugin. pairs: timed pairs of
    (plugin, bare), 0 times nothing.

    Raises:
        ConfigError: no plugin, or fewer than two steps.
    """
    if not plugins or steps < 2:
        got = "nothing to compare" if not plugins else f"steps={steps}"
        raise ConfigError(explain(got, "one plugin or more, 2 steps or more", "Name a plugin, such as forecast"))

    def paint(count: int = steps) -> Tensor:
        return painter.paint(steps=count, guidance=guidance, seed=seed)

    full = paint()
    arms, pictures = [], [full]
    for name, plugin in plugins.items():
        with attach(painter.pipe, plugin) as handle:
            made = paint()
            report = handle.stats().runs[-1]
            times = _time(paint, handle, pairs) if pairs else None
        arms.append(_arm(name, report, likeness(made, full), times))
        pictures.append(made)
    scheduler = type(painter.pipe.scheduler).__name__
    for count in sorted(
        {same_cost(arm.evaluations / arm.evaluations_bare, steps) for arm in arms} - {steps}, reverse=True
    ):
        made = paint(count)
        share = count / steps
        bare = arms[0].evaluations_bare
        arms.append(DenoiseArm(f"{FEWER}: {count}", bare * share, bare, (1.0,) * count, likeness(made, full), 0, None))
        pictures.append(made)
    return DenoiseComparison(
        painter.name, scheduler, steps, guidance, seed, tuple(arms), tuple(pictures), describe_device(painter.device)
    )


def likeness(made: Tensor, full: Tensor) -> float:
    """PSNR of all pictures together to those of the full run, dB; infinite when they are the same."""
    return float(psnr(full.flatten()[None], made.flatten()[None])[0])


def by_step(report: DenoiseReport) -> tuple[float, ...]:
    """Share of each step that was computed, mean over its calls."""
    steps = sorted({call.step for call in report.calls})
    found = [[call.computed for call in report.calls if call.step == step] for step in steps]
    return tuple(sum(shares) / len(shares) for shares in found)


def same_cost(share: float, steps: int) -> int:
    """Steps of a bare run that cost nearest to this share of `steps` of them; 1 or more."""
    return max(1, round(steps * share))


def _arm(name: str, report: DenoiseReport, quality: float, times: PairedTimes | None) -> DenoiseArm:
    return DenoiseArm(
        name, report.evaluations, report.evaluations_bare, by_step(report), quality, report.state_bytes, times
    )


def _time(paint: Callable[[], Tensor], handle: Any, pairs: int) -> PairedTimes:
    def done() -> None:
        paint()
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    def bare() -> None:
        with handle.paused():
            done()

    return paired_times(done, bare, pairs=pairs, warmup=1)
