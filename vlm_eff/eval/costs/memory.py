"""Peak memory of a call."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable
from typing import Any

import torch

from vlm_eff.eval.subject import Subject

_CPU = "growth of ru_maxrss of the process: not comparable with a GPU, and 0 where an earlier call needed more"


def peak_memory(subject: Subject, run: Callable[[], object]) -> dict[str, Any]:
    """Run once and say what it took at most, in bytes.

    On a GPU: `above_weights` = largest allocation minus the weights; `allocated` = the largest allocation as it is;
    `reserved` = what the allocator held, fragments among it. On a CPU the growth of the process alone, as
    `above_weights`.
    """
    device = subject.device
    if device.type != "cuda":
        before = _resident()
        run()
        grown = _resident() - before
        return {"above_weights": grown, "allocated": None, "reserved": None, "weights": _weights(subject), "note": _CPU}
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    run()
    torch.cuda.synchronize(device)
    peak, weights = torch.cuda.max_memory_allocated(device), _weights(subject)
    return {
        "above_weights": peak - weights,
        "allocated": peak,
        "reserved": torch.cuda.max_memory_reserved(device),
        "weights": weights,
        "note": "torch.cuda.max_memory_allocated, reset before the call",
    }


def _weights(subject: Subject) -> int:
    """Bytes of parameters and buffers, storages that are shared counted once."""
    tensors = [*subject.model.parameters(), *subject.model.buffers()]
    return sum({one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in tensors}.values())


def _resident() -> int:
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # bytes on macOS, KiB elsewhere
    return most if sys.platform == "darwin" else most * 1024
