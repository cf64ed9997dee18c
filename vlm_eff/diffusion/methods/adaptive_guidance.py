"""Guidance until it no longer matters."""

from __future__ import annotations

from vlm_eff.core.registry import method
from vlm_eff.diffusion.guidance import Guide, UntilAlike


@method(room="diffusion", acts="half of the guidance", paper="arXiv:2312.12487")
def adaptive_guidance(bound: float = 0.99) -> Guide:
    """Gives up the unconditional half for the rest of a run once both halves point the same way.

    The rest of the run is unguided: both halves get the conditional output. In a batch the row whose halves differ most
    decides for all.

    Args:
        bound: cosine of the two outputs above which guidance ends; 1 never ends it

    Paper arXiv:2312.12487, section 5 (AG). The cosine is that of the last guided step, so guidance ends
    one step later than could be known; the affine form LinearAG is not here.

    Saves half of the denoiser from then on; costs two outputs of memory, and a wait for the device at every
    guided step, because the cosine is needed on the host.

    Raises:
        ConfigError: a bound that is no cosine.
        CapabilityError: a pipeline that calls for the unconditional branch before the conditional one (in the run).
    """
    return Guide("adaptive_guidance", UntilAlike(bound))
