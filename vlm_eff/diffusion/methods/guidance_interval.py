"""Guidance in a part of the run alone."""

from __future__ import annotations

from vlm_eff.core.errors import ConfigError, explain
from vlm_eff.core.registry import method
from vlm_eff.diffusion.guidance import Band, Guide, SigmaBand


@method(room="diffusion", acts="half of the guidance", paper="arXiv:2404.07724")
def guidance_interval(start: float = 0.2, stop: float = 0.8, sigmas: tuple[float, float] | None = None) -> Guide:
    """Guides in the middle of a run alone; before and behind it computes only the conditional half.

    This changes the image that the run is heading for: it is a way of sampling, not an approximation of the run with
    guidance throughout, and must not be judged by its distance to that one. Outside the band both halves
    get the conditional output, from which the pipeline's formula makes that same output at any scale.

    Args:
        start:  fraction of the steps before which there is no guidance; 0 and 1 for all of them
        stop:   fraction of the steps from which on there is none
        sigmas: guide while lowest < sigma <= highest of these two noise levels instead, as the paper does

    Paper arXiv:2404.07724, equation 3: guidance at middle noise levels. Fractions of the run are ours, since
    schedulers differ in their sigmas.

    Saves half of the denoiser outside the band, and costs nothing. In pipelines that do not say whether they guide
    (PixArt) the first step is computed whole, with guidance: two prompts that start from one noise look the same there.

    Raises:
        ConfigError: a fraction or noise level out of range or order.
        CapabilityError: a pipeline that calls for the unconditional branch before the conditional one (in the run).
        StateError: the halves turned out to be the other way round (in the first run; the second is right).
    """
    if sigmas is None:
        return Guide("guidance_interval", Band(start, stop))
    if len(sigmas) != 2:
        raise ConfigError(explain(f"sigmas={sigmas!r}", "two noise levels, the lower one first", "Correct them"))
    return Guide("guidance_interval", SigmaBand(*sigmas))
