"""DyCoke."""

from __future__ import annotations

from vlm_eff.core.registry import method
from vlm_eff.importance.keep import Keep
from vlm_eff.tokens.methods.video import SERVED
from vlm_eff.tokens.reducer import TokenReducer
from vlm_eff.tokens.schedule import Stage
from vlm_eff.tokens.scores_video import WindowNovelty
from vlm_eff.tokens.select_video import PerWindow


@method(room="tokens", acts="before the language model", paper="arXiv:2411.15024", families=SERVED)
def dycoke(keep_ratio: float = 0.3, faithful: bool = False) -> TokenReducer:
    """Drop what repeats inside windows of four frames.

    Score    1 - cosine to the same place: frames 1 and 2 of a window against its frame 0, frame 3 against 2  [B, V]
    Select   frame 0 whole; of each other frame the int(n * keep_ratio) least alike     Reduce  drop
    When     once, before the language model; images in the prompt are left alone
    Paper    DyCoke, arXiv:2411.15024 (temporal token merging, k = 1 - `keep_ratio`); follows the code
    Differs  the code hands kept tokens on unsorted, which breaks causality: here in order. It leaves frame 2 of the
             last window whole and loses the last of an odd number of frames; `faithful` does so too, otherwise a short
             last window is treated as any other. The paper's second part, which chooses again at every decoding step
             among all cached tokens, frees no memory and is not in this room.
    Cost     one cosine a token                Saves  prefill FLOPs and KV cache of all layers; realised

    Args:
        keep_ratio: fraction kept of each frame that is held against another, (0, 1], rounded down, at least one token.
            Of a long video (1 + 3 * keep_ratio) / 4 stay.
        faithful: the released code's treatment of the last window.

    Raises:
        ConfigError: a ratio outside (0, 1].
    """
    keep = Keep(ratio=keep_ratio, rounding="down")
    return TokenReducer("dycoke", (Stage(keep, layer=0, score=WindowNovelty(), select=PerWindow(faithful)),))
