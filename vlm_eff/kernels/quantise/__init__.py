"""Cache entries in few bits: quantised and packed in one pass, read back."""

from vlm_eff.kernels.quantise.joining import can_join, join
from vlm_eff.kernels.quantise.op import quantise
from vlm_eff.kernels.quantise.stored import Quantised

__all__ = ["Quantised", "can_join", "join", "quantise"]
