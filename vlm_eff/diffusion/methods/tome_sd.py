"""ToMe-SD: merge alike tokens in front of attention inside the denoiser."""

from __future__ import annotations

from typing import Literal

from vlm_eff.core.errors import ConfigError, explain
from vlm_eff.core.registry import method
from vlm_eff.diffusion.token_merge import ImportantPool, OneACell, Splitter, TokenMerger


@method(room="diffusion", acts="tokens inside the denoiser", paper="arXiv:2303.17604")
def tome_sd(
    ratio: float = 0.5,
    stride: tuple[int, int] = (2, 2),
    max_downsample: int | None = None,
    random: bool = True,
    importance: Literal["none", "guidance"] = "none",
    attention: bool = True,
    cross_attention: bool = False,
    mlp: bool = False,
    steps: tuple[float, float] = (0.0, 1.0),
    min_tokens: int | None = None,
    seed: int = 0,
) -> TokenMerger:
    """Merges the most similar tokens in front of self-attention in the denoiser's blocks, and copies back behind it.

    One token of each cell of the grid stays; of the others those that are most like one of these, by cosine at the
    block's input, are averaged into it, and get its result. The mean is plain, and attention does not weigh sizes.

    Args:
        ratio:           share of the tokens that go; at most 75 % can with cells of 2 x 2
        stride:          rows and columns of a cell
        max_downsample:  coarsest level of a UNet that merges: 1, 2, 4 or 8; by default the finest that has blocks: 1 in
                         Stable Diffusion, 2 in SDXL
        random:          draw the token of a cell that stays anew at each step, else take its first
        importance:      "guidance" merges the tokens that guidance changed least at the step before
        attention:       merge in front of self-attention
        cross_attention: merge in front of attention to the text too, where it is a module of its own
        mlp:             merge in front of the MLP too, where it is a module of its own
        steps:           begin and end of merging, as fractions of the run
        min_tokens:      blocks with fewer tokens are left alone; 1024 on a CPU and 4096 elsewhere by default, where
                         merging begins to pay. `run.notes` tells what was merged and what was not
        seed:            of the draws, which are the same in every run, in all rows and in both halves of the guidance

    Paper arXiv:2303.17604, section 4; follows tomesd 0.1.3 in the partition, the plain mean and the block's input as
    what is compared. Differs: grids of any sides; DiT, PixArt, SD3, Flux and Wan besides UNets (of joint attention the
    image's tokens alone; a merged token has the rotary position of the one that stayed); merges in SDXL by default,
    which has no blocks at tomesd's level 1; draws of its own, so that the pipeline's noise is the same as without it.
    importance="guidance" follows arXiv:2411.16720: the pool of the most important tokens is a quarter larger than what
    is left (our choice), as many of it as there are cells may take in others, and everything outside goes; the first
    step merges nothing.

    Saves the projections of tokens that go and their part of the attention; costs a search of 2 S G C FLOPs a row for S
    tokens that may go and G that stay. On one CPU core the attention of a block takes 0.51 of its time at 1,024 tokens
    and 0.37 at 4,096 (width 320, ratio 0.5, search and copies included); on GPUs with fused attention the gain is
    reported to begin at about 4,000 tokens.

    Raises:
        ConfigError: a ratio, stride, range of steps or importance that is none, or nothing to merge in front of.
        CapabilityError: a denoiser whose blocks or grid are not known; importance="guidance" in a run without guidance.
    """
    flags = {"self": attention, "cross": cross_attention, "mlp": mlp}
    kinds = tuple(kind for kind, wanted in flags.items() if wanted)
    splits: dict[str, Splitter] = {"none": OneACell(stride, random, seed), "guidance": ImportantPool(stride, seed=seed)}
    if importance not in splits:
        raise ConfigError(explain(f"importance={importance!r}", ", ".join(splits), "Use one of these"))
    return TokenMerger("tome_sd", splits[importance], ratio, kinds, max_downsample, steps, min_tokens)
