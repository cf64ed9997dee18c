"""Two settings of every method of the cache: one of defaults, and one that really evicts of the tiny prompts."""

from vlm_eff.core.plugin import Plugin
from vlm_eff.kvcache import cross_modal_low_rank, random_evict, snapkv, streaming_llm

KV_CASES: dict[str, tuple[Plugin, Plugin]] = {
    "cross_modal_low_rank": (cross_modal_low_rank(energy=0.5), cross_modal_low_rank(rank=3, rows=5)),
    "random_evict": (random_evict(), random_evict(keep_ratio=0.4, seed=3)),
    "snapkv": (snapkv(), snapkv(keep_ratio=0.4, window=4)),
    "streaming_llm": (streaming_llm(), streaming_llm(keep_count=11, sinks=3)),
}
EASY = {name: easy for name, (easy, _) in KV_CASES.items()}
HARD = {name: hard for name, (_, hard) in KV_CASES.items()}
