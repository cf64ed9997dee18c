"""Two settings of every method of the cache: one of defaults, and one that really evicts of the tiny prompts."""

from vlm_eff.core.plugin import Plugin
from vlm_eff.kvcache import (
    adakv,
    cross_modal_low_rank,
    entropy,
    entropy_regularised,
    h2o,
    hessian,
    kivi,
    look_m,
    meda,
    modality_logits,
    prefixkv,
    pyramidkv,
    random_evict,
    saliency_precision,
    scissorhands,
    sensitivity,
    snapkv,
    streaming_llm,
    tova,
    visual_quant,
    vl_cache,
    zipvl_kv,
)

KV_CASES: dict[str, tuple[Plugin, Plugin]] = {
    "cross_modal_low_rank": (cross_modal_low_rank(energy=0.5), cross_modal_low_rank(rank=3, rows=5)),
    "entropy": (entropy(), entropy(keep_ratio=0.4, recent=3)),
    "entropy_regularised": (entropy_regularised(), entropy_regularised(keep_ratio=0.4, weight=0.3, recent=3)),
    "h2o": (h2o(), h2o(keep_count=11)),
    "hessian": (hessian(), hessian(keep_ratio=0.4, window=4, form="joint", cross=2.0, centre=True, metric="output")),
    "kivi": (kivi(), kivi(bits=4, group=4, residual=4)),
    "meda": (meda(), meda(keep_ratio=0.5, rows=6, recent_share=0.3, adaptive_share=0.5)),
    "look_m": (look_m(), look_m(keep_ratio=0.6, recent_share=0.4)),
    "random_evict": (random_evict(), random_evict(keep_ratio=0.4, seed=3)),
    "saliency_precision": (saliency_precision(), saliency_precision(bits_budget=1.5, window=4, group=4, every=3)),
    "scissorhands": (scissorhands(), scissorhands(keep_count=12, window=5, recent=3, drop=0.25)),
    "sensitivity": (sensitivity(), sensitivity(keep_ratio=0.4, recent=3, cross=1.0)),
    "snapkv": (snapkv(), snapkv(keep_ratio=0.4, window=4)),
    "streaming_llm": (streaming_llm(), streaming_llm(keep_count=11, sinks=3)),
    "tova": (tova(), tova(keep_ratio=0.4)),
    "visual_quant": (visual_quant(), visual_quant(bits=2, outliers=0.1)),
    "zipvl_kv": (zipvl_kv(), zipvl_kv(high_bits=8, keep_mass=0.7, recent=5, random=4, every=3)),
    "adakv": (adakv(), adakv(keep_ratio=0.5, window=4, kernel=3)),
    "prefixkv": (prefixkv(), prefixkv(keep_ratio=0.4, sinks=2, normalise="none")),
    "pyramidkv": (pyramidkv(), pyramidkv(keep_ratio=0.4, window=4)),
    "vl_cache": (vl_cache(), vl_cache(keep_ratio=0.4, recent_share=0.2)),
}
EASY = {name: easy for name, (easy, _) in KV_CASES.items()}
HARD = {name: hard for name, (_, hard) in KV_CASES.items()}
# what changes how the cache is attended to, and nothing that is stored: tested by itself
LOGIT_CASES: dict[str, tuple[Plugin, Plugin]] = {
    "modality_logits": (modality_logits(), modality_logits(text_to_image=0.4, image_to_text=1.7)),
}
