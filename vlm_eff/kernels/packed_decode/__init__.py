"""Decode attention over packed, mixed-precision cache entries."""

from vlm_eff.kernels.packed_decode.op import packed_decode
from vlm_eff.kernels.packed_decode.pairs import ExactPair, PackedPair

__all__ = ["ExactPair", "PackedPair", "packed_decode"]
