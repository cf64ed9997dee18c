"""Skipping the denoiser while its latents say that its output changes little."""

from __future__ import annotations

from vlm_eff.core.denoise import DenoiserSite
from vlm_eff.core.registry import method
from vlm_eff.diffusion.predictors import AddOffset, Axis, Polynomial
from vlm_eff.diffusion.signals import LatentChange
from vlm_eff.diffusion.step_cache import StepCache
from vlm_eff.diffusion.thresholds import WhileSumBelow


@method(room="diffusion", acts="the denoiser's output", paper="arXiv:2507.02860")
def easycache(
    threshold: float = 0.05,
    order: int = 1,
    axis: Axis = "index",
    warm_up: int = 5,
    cool_down: int = 1,
    per_row: bool = False,
    faithful: bool = False,
) -> StepCache:
    """Skips the denoiser until the change expected from its latents adds up to a threshold.

    The last two computed steps tell how much the output changes with the latents; this times the change of the latents
    since the step before, over the size of the output, is added up. No block is run to decide, so it works on every
    UNet and transformer.

    Args:
        threshold: sum up to which steps are skipped; 0 computes all
        order:     degree of the polynomial through the last outputs that stands in for skipped ones
        axis:      what it is a polynomial of: "index" of the step, "sigma" or "log_snr"
        warm_up:   steps at the beginning that are all computed
        cool_down: steps at the end, the same
        per_row:   each row of the batch (image, or half of the guidance) is decided on its own
        faithful:  as official: the last output, moved by as much as the latents have moved (overrides order and axis)

    Paper arXiv:2507.02860; official code: threshold 0.025 for HunyuanVideo, first 5 steps (Wan: 10) computed.
    Their way to stand in for an output was the worst of all that the project has compared at equal cost, so the default
    pairs their signal with linear forecasting. Theirs lets the conditional call decide for both halves of the guidance;
    here each branch decides for itself, and without `per_row` all rows of a call are computed where one changes.

    Saves all of the denoiser at skipped steps; costs two outputs with their latents of memory, and a decision at every
    step that the host waits for.

    Raises:
        ConfigError: a threshold or count below its least value.
        CapabilityError: in a run with `faithful`, a denoiser whose output has not the shape of its latents (DiT).
    """
    predictor = AddOffset() if faithful else Polynomial(order, axis)
    return StepCache(
        "easycache",
        DenoiserSite(),
        WhileSumBelow(threshold),
        predictor,
        LatentChange(),
        warm_up=warm_up,
        cool_down=cool_down,
        per_row=per_row,
    )
