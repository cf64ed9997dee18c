"""Operations on tensors that deserve a fast path: Triton kernels on a GPU, exact PyTorch elsewhere."""

from vlm_eff.kernels.dispatch import Backend, operations, prefer, why_not

__all__ = ["Backend", "operations", "prefer", "why_not"]
