"""Whether Triton kernels can run here, and on these tensors."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterable

import torch
from torch import Tensor

# the oldest NVIDIA architecture whose compile was looked at: on 7.5 the same kernels need kilobytes of stack
OLDEST = (8, 0)
DTYPES = (torch.float16, torch.bfloat16, torch.float32)


_INSTALLED = importlib.util.find_spec("triton") is not None


def installed() -> bool:
    """True when Triton can be imported."""
    return _INSTALLED


def interpreting() -> bool:
    """True when Triton was told to run kernels in Python on the CPU, one program after another, to check values."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes")


def why_no_kernel(tensors: Iterable[Tensor]) -> str | None:
    """Why no Triton kernel of ours can run on these tensors; None when one can."""
    tensors = list(tensors)
    if not installed():
        return "triton is not installed (pip install 'vlm-eff[kernels]')"
    devices = {tensor.device for tensor in tensors}
    if len(devices) != 1:
        return f"the tensors are on {', '.join(sorted(map(str, devices))) or 'no device'}, not on one"
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return "a tensor requires gradients, and the kernels have no backward pass"
    device = devices.pop()
    if interpreting():
        # Triton's interpreter computes on the bit patterns of bfloat16: wrong by factors of 1e9, without a word
        bad = any(tensor.dtype == torch.bfloat16 for tensor in tensors)
        return "Triton's interpreter computes bfloat16 wrongly" if bad else None
    if device.type != "cuda":
        return f"the tensors are on {device.type}, and Triton needs a CUDA device"
    if torch.version.hip is not None:
        return "the kernels were compiled and checked for NVIDIA devices alone"
    capability = torch.cuda.get_device_capability(device)
    if capability < OLDEST:
        return f"compute capability {capability[0]}.{capability[1]} is below {OLDEST[0]}.{OLDEST[1]}"
    return None


def why_not_dense(*tensors: Tensor) -> str | None:
    """Why these tensors are not what a kernel reads: rows without gaps, of one half or single precision type."""
    kinds = {tensor.dtype for tensor in tensors}
    if len(kinds) > 1:
        return f"the tensors have several types: {', '.join(sorted(map(str, kinds)))}"
    for tensor in tensors:
        if tensor.dtype not in DTYPES:
            return f"a tensor is {tensor.dtype}, and kernels read float16, bfloat16 and float32"
        if tensor.numel() and tensor.stride(-1) != 1:
            return f"the last axis of a tensor has stride {tensor.stride(-1)}, and kernels read stride 1"
    return None
