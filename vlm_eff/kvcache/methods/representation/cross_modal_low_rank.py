"""Joint cross-modal low rank: visual entries by few directions, those that the words look along."""

from __future__ import annotations

from vlm_eff.core.plugin import Plugin
from vlm_eff.core.registry import method
from vlm_eff.importance.keep import check_several
from vlm_eff.kvcache.factorise import LowRankCache


@method(room="kvcache", acts="between forward passes", paper="survey, joint cross-modal low rank")
def cross_modal_low_rank(
    rank: int | None = None,
    energy: float | None = None,
    modalities: tuple[str, ...] = ("image",),
    rows: int = 64,
) -> Plugin:
    """Store entries of a modality as few coefficients and one basis a head, made for the other modality's queries.

    Keys     without rotation, the best r directions in the metric of the queries that look at them: with M the mean
             of q q^T over the last `rows` text rows and T_j the rotation of entry j, the mean of T_j^T M T_j, because
             a logit is q . T_j k. Rotated again when they are read
    Values   the best r directions, each entry's squared error counting by the attention that it received
    Switch   entries stay as they are in rows where r (n + Dh) numbers are no fewer than n Dh
    When     once after each prompt or turn; new tokens stay exact
    Paper    survey, joint cross-modal low rank; there is no official code
    Differs  the paper's matrix, diagonals of K_text^T Q_image and K_image^T Q_text, exists only for equally many
             tokens, and its SVD sorts it; this is the reading that has an optimum (Eckart and Young in the queries'
             metric). One metric for all entries is optimal in their mean, not for each place
    Cost     `rows` attention rows and two Dh x Dh eigenproblems a layer and head, once; decode steps multiply the
             entries out anew, which takes time
    Saves    memory of the KV cache; realised, r (n + Dh) numbers a head for n entries. No time

    Args:
        rank: directions of keys and of values, at most Dh.
        energy: instead, as few as hold this fraction (0, 1] of the energy in every head; default 0.95. Heads of a layer
            are stored with as many as the widest of them needs.
        modalities: of "text", "image" and "video", each factorised by itself. Decode steps are text, so it is visual
            entries that they look at across modalities; text entries are seen by images only behind them.
        rows: last text rows that say what matters; where text is factorised, as many rows drawn from the rest.

    Raises:
        ConfigError: rank and energy, a rank or rows below 1, an energy outside (0, 1], a modality that is none.
    """
    if rank is None and energy is None:
        energy = 0.95
    return LowRankCache(
        "cross_modal_low_rank",
        check_several("modalities", modalities, "some of text, image and video"),
        rank,
        energy,
        rows,
    )
