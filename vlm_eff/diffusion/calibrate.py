"""Full runs of a pipeline that tell how its blocks change from step to step."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from vlm_eff.core.denoise import DenoiseContext, DenoisePlugin, StackSite
from vlm_eff.core.errors import ConfigError, explain
from vlm_eff.core.files import check_place
from vlm_eff.core.plugin import BindContext
from vlm_eff.core.resources import Resource
from vlm_eff.diffusion.calibration import ChangeCurve, MagnitudeTable, Provenance, fit_curve, save_calibration
from vlm_eff.diffusion.signals import ModulatedChange, relative_change
from vlm_eff.models.attach import attach
from vlm_eff.models.denoise.view import UnitView


@dataclass(frozen=True)
class StackRecorder(DenoisePlugin):
    """Computes everything and writes down how the residual of the blocks changes, and what their modulated input does.

    pairs:  (change of the modulated input, change of the residual), one a step and row
    ratios: by branch and step, mean over tokens of |R_i| / |R_(i-1)|
    """

    looks: tuple[str, ...] = ()
    pairs: list[tuple[float, float]] = field(default_factory=list)
    ratios: dict[int, dict[int, list[float]]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(list)))
    made: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return "calibration"

    @property
    def sites(self) -> tuple[StackSite, ...]:
        return (StackSite(0, 0, self.looks),)

    @property
    def writes(self) -> frozenset[Resource]:
        return frozenset({Resource.DENOISER_STEPS})

    @property
    def depth(self) -> int:
        return 2

    def bind(self, context: BindContext) -> DenoisePlugin:
        assert isinstance(context, DenoiseContext)
        self.made.update(model=context.family, scheduler=context.scheduler)
        return self

    def at(self, site: StackSite, view: UnitView) -> None:
        self.made.update(steps=view.step.count, size=tuple(view.call.latents.shape))
        before = view.notes.get("change")
        if len(view.history) == 2:
            # of the image, at the step before this one
            older, newer = view.history[0].value[-1], view.history[1].value[-1]
            size = newer.float().norm(dim=-1) / older.float().norm(dim=-1)
            self.ratios[view.branch][view.step.index - 1].append(float(size.nanmean()))
            if before is not None:
                self.pairs.extend(zip(before.tolist(), relative_change(newer, older).tolist(), strict=True))
        if self.looks:
            view.notes["change"] = ModulatedChange()(view)


def calibrate_teacache(pipe: Any, *calls: Mapping[str, Any], save: str | Path | None = None) -> ChangeCurve:
    """Make full runs of a pipeline and fit how the blocks' residual changes with their modulated input.

    The fit is monotone and ends where the measurements do. The official code fits a polynomial of degree 4 to the
    change of the model's output over 70 prompts; those fall, and go below zero, outside of what they were fitted to.

    Args:
        calls: keywords of the pipeline, one mapping a run, with the steps, guidance and size that will be used
        save:  where to write the fit as JSON

    Raises:
        ConfigError: no call was given, or runs of fewer than 4 steps.
        InputError: `save` lies in no folder (before any run).
        CapabilityError: a UNet, or a transformer whose blocks or norms are not known.
    """
    if save is not None:
        check_place(Path(save))
    recorder = _record(pipe, calls, ("modulated",))
    curve = fit_curve(recorder.pairs, recorder.made)
    if save is not None:
        save_calibration(curve, save)
    return curve


def calibrate_magcache(pipe: Any, *calls: Mapping[str, Any], save: str | Path | None = None) -> MagnitudeTable:
    """Make full runs of a pipeline, one is enough, and note how the size of the blocks' residual changes.

    The ratio of the last step is not seen, and taken for that of the step before.

    Args:
        calls: keywords of the pipeline, one mapping a run, with the steps, guidance and size that will be used
        save:  where to write the table as JSON

    Raises:
        ConfigError: no call was given, or runs of fewer than 4 steps.
        InputError: `save` lies in no folder (before any run).
        CapabilityError: a UNet, or a transformer whose blocks are not known.
    """
    if save is not None:
        check_place(Path(save))
    recorder = _record(pipe, calls, ())
    rows = []
    for _, steps in sorted(recorder.ratios.items()):
        row = [1.0] + [sum(steps[i]) / len(steps[i]) for i in sorted(steps)]
        rows.append((*row, row[-1]))
    table = MagnitudeTable(tuple(rows), Provenance(**recorder.made))
    if save is not None:
        save_calibration(table, save)
    return table


def _record(pipe: Any, calls: tuple[Mapping[str, Any], ...], looks: tuple[str, ...]) -> StackRecorder:
    if not calls:
        raise ConfigError(explain("no call", "keywords of the pipeline, one mapping a run", "Give at least one"))
    recorder = StackRecorder(looks)
    with attach(pipe, recorder), torch.no_grad():
        for call in calls:
            pipe(**call)
    if recorder.made["steps"] < 4:
        raise ConfigError(explain(f"runs of {recorder.made['steps']} steps", "at least 4", "Calibrate with more steps"))
    guidance = calls[0].get("true_cfg_scale", calls[0].get("guidance_scale"))
    recorder.made.update(runs=len(calls), date=datetime.now(UTC).date().isoformat(), guidance=guidance)
    return recorder
