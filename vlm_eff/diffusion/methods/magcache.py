"""Skipping all blocks while the size of what they add is known to change little."""

from __future__ import annotations

from pathlib import Path

from vlm_eff.core.denoise import StackSite
from vlm_eff.core.registry import method
from vlm_eff.diffusion.calibration import MagnitudeTable, read_calibration
from vlm_eff.diffusion.predictors import Polynomial
from vlm_eff.diffusion.step_cache import StepCache
from vlm_eff.diffusion.thresholds import WhileMagnitudesHold


@method(room="diffusion", acts="the blocks of a transformer", paper="arXiv:2506.09045")
def magcache(
    calibration: MagnitudeTable | str | Path | None = None,
    threshold: float = 0.06,
    max_skip: int = 3,
    retention: float = 0.2,
    order: int = 0,
) -> StepCache:
    """Skips all blocks of a transformer while the size of their residual, as calibrated, drifts little.

    Args:
        calibration: ratios of a model, or the path of them; `calibrate_magcache(pipe, call, save=path)` makes them
        threshold:   sum of |1 - drift| since the last computed step up to which blocks are skipped; 0 computes all
        max_skip:    steps in a row that are skipped at most
        retention:   share of the run at its beginning that is computed
        order:       0 adds the last residual of the blocks; 1 continues the last two linearly, and so on

    Paper arXiv:2506.09045, with the rule of diffusers' MagCacheConfig, to which it is equal where theirs runs.
    Theirs has ratios for Flux alone and prints those of other models; here they are a file, one row a guidance branch,
    that belongs to one model and one scheduler. Other numbers of steps take the ratio of the nearest place. Paper's
    settings: Flux 0.24, max_skip 5, retention 0.1; Wan 0.24, 6, 0.2.

    Saves the blocks at skipped steps; costs one residual of each stream. Decides before the run, so that the host never
    waits; it does not see when the residual turns without changing its size.

    Raises:
        ConfigError: no calibration, or one that cannot be read; a number outside of its range.
        CapabilityError: at attach, a UNet or a transformer whose blocks are not known, or another model or scheduler
            than the calibration's.
    """
    table = read_calibration(calibration, MagnitudeTable, "magcache")
    policy = WhileMagnitudesHold(table, threshold, max_skip, retention)
    return StepCache("magcache", StackSite(0), policy, Polynomial(order))
