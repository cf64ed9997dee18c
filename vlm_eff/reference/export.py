"""Writing a trained model as a folder that `from_pretrained` reads."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import LlavaForConditionalGeneration, LlavaProcessor

MAX_BYTES = 20_000_000


def export_model(model: LlavaForConditionalGeneration, processor: LlavaProcessor, folder: Path) -> Path:
    """Write weights in bfloat16, configuration, tokenizer and processor into a folder.

    Raises:
        ValueError: the weights are larger than the 20 MB that the package may ship.
    """
    model = model.to(torch.bfloat16)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    weights = folder / "model.safetensors"
    size = weights.stat().st_size
    if size > MAX_BYTES:
        raise ValueError(f"got weights of {size} bytes; accepted are {MAX_BYTES}; train a smaller preset")
    wrong = [name for name, value in load_file(weights).items() if not torch.isfinite(value).all()]
    if wrong:
        raise ValueError(f"got values that are not finite in {wrong[:3]}; accepted are finite weights; train again")
    return folder
