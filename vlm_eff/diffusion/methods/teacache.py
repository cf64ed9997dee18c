"""Skipping all blocks while their modulated input says that they change little."""

from __future__ import annotations

from pathlib import Path

from vlm_eff.core.denoise import StackSite
from vlm_eff.core.registry import method
from vlm_eff.diffusion.calibration import ChangeCurve, read_calibration
from vlm_eff.diffusion.predictors import Polynomial
from vlm_eff.diffusion.signals import CalibratedChange, ModulatedChange
from vlm_eff.diffusion.step_cache import StepCache
from vlm_eff.diffusion.thresholds import WhileSumBelow


@method(room="diffusion", acts="the blocks of a transformer", paper="arXiv:2411.19108")
def teacache(
    calibration: ChangeCurve | str | Path | None = None,
    threshold: float = 0.25,
    order: int = 0,
    warm_up: int = 1,
    cool_down: int = 1,
    per_row: bool = False,
) -> StepCache:
    """Skips all blocks of a transformer until the change expected from the first one's input adds up to a threshold.

    The input is the one that the first block's norm has modulated by the time; its change from step to step, relative
    L1, is put through a curve that was calibrated on the same model, and added up. What the blocks added when they were
    computed last is added again.

    Args:
        calibration: a curve, or the path of one; `calibrate_teacache(pipe, call, save=path)` makes it
        threshold:   sum up to which blocks are skipped; 0 computes all
        order:       0 adds the last residual of the blocks; 1 continues the last two linearly, and so on
        warm_up:     steps at the beginning that are all computed
        cool_down:   steps at the end, the same
        per_row:     each row of the batch (image, or half of the guidance) is decided on its own

    Paper arXiv:2411.19108. The official code has polynomials of degree 4 for single models, some of which fall below
    zero outside of what they were fitted to and then never compute again. Here the curve is monotone, belongs to one
    model and one scheduler (others are refused), and what exceeds all that it has seen is computed. It gives the
    change of the blocks' residual, which is what is used again; theirs that of the model's output. Steps, guidance
    and size are noted in the calibration and not checked.

    Saves the blocks at skipped steps; costs one residual of each stream, the first block's norm, and a decision at
    every step that the host waits for.

    Raises:
        ConfigError: no calibration, or one that cannot be read; a threshold or count below its least value.
        CapabilityError: at attach, a UNet or a transformer whose blocks or norms are not known, or another model or
            scheduler than the calibration's.
    """
    curve = read_calibration(calibration, ChangeCurve, "teacache")
    return StepCache(
        "teacache",
        StackSite(0, 0, ("modulated",)),
        WhileSumBelow(threshold),
        Polynomial(order),
        CalibratedChange(ModulatedChange(), curve),
        warm_up=warm_up,
        cool_down=cool_down,
        per_row=per_row,
    )
