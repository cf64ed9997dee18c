"""Latents of near prompts, across requests."""

from __future__ import annotations

from vlm_eff.core.registry import method
from vlm_eff.diffusion.prompt_start import Key, PromptCache
from vlm_eff.diffusion.prompt_store import PromptStore


@method(room="diffusion", acts="the beginning of a run", paper="arXiv:2312.04429")
def prompt_cache(
    tiers: tuple[tuple[float, float], ...] = ((0.95, 0.1), (0.97, 0.3), (0.99, 0.5)),
    look: int = 0,
    key: str | Key = "prompt",
    store: PromptStore | None = None,
) -> PromptCache:
    """Starts a run from the latents that an earlier run of a near prompt had after some of its steps.

    The solver's history is kept with the latents: the same prompt ends bit for bit where the earlier run ended, also
    under multistep solvers. A run takes over the noise of the earlier one with its latents: the seed of a run that
    resumes has no say (but in noise that a random sampler adds later). A batch is kept, and found, as a whole.

    Args:
        tiers: pairs of the least similarity and the share of the steps that it lets out; empty never resumes
        look:  steps that are computed before it is decided; at least 1 where guidance does not come in one batch
        key:   "prompt" compares what the denoiser is told, tokens averaged, by the least cosine of all parts;
               "trajectory" the run's own latents after `look` steps (ReDi); or a function from the tensors that the
               denoiser is given, by name, to parts [R, D]
        store: a `PromptStore` to share between handles, to save and to load; None makes one for the handle

    Paper arXiv:2312.04429 (Nirvana), sections 4 and 5; the trajectory key arXiv:2302.02285 (ReDi). Nirvana compares
    CLIP embeddings; here it is what the model itself is told, of which unrelated prompts are .8 alike and more in some
    encoders: look at `similarity` in the notes of your runs before you lower a tier. Runs resume only under the same
    weights, scheduler, steps, sizes and settings that the pipeline keeps; a guidance scale that it keeps nowhere (DiT,
    `true_cfg_scale` of Flux) is not seen: give such runs stores of their own. Caches beside it begin anew where a run
    resumes: what they approximate may differ a little from the earlier run.

    Saves all of the denoiser in the steps left out (notes: `hit`, `similarity`, `steps_left_out`,
    `evaluations_saved`). Costs the store: latents and two or three times as much history a point; one comparison on
    the host a run.

    Raises:
        ConfigError: tiers outside of (0, 1), an unknown key.
        CapabilityError: a pipeline that starts from an image or a video.
    """
    return PromptCache(tuple((least, share) for least, share in tiers), look, key, store)
