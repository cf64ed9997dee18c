"""The bundled reference model: a small LLaVA trained by this package on scenes of its own and on easy-VQA.

What lives here: scene and question generators, training, weights, loading, evaluation. What does not: any plugin.
Start reading at `scenes.py`, then `batches.py` and `train.py`. Nothing heavy is imported until it is asked for.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import LlavaForConditionalGeneration, LlavaProcessor

__all__ = ["REGISTERS", "load_reference", "reference_folder", "registers_file"]

# trained registers of the bundled model: (registers, layer) and how they start
REGISTERS = {(18, 3): "pooled", (18, 1): "pooled"}


def reference_folder() -> Path:
    """Return the folder of the bundled model, fit for `from_pretrained`."""
    return Path(__file__).resolve().parent / "small_vlm"


def registers_file(registers: int, layer: int) -> Path:
    """Return the file of registers trained for the bundled model, as `victor(..., weights=str(file))` takes it.

    Raises:
        FileNotFoundError: no registers were trained for these numbers; `REGISTERS` lists what there is.
    """
    if (registers, layer) not in REGISTERS:
        known = ", ".join(f"{count} registers at layer {place}" for count, place in REGISTERS)
        raise FileNotFoundError(
            f"got {registers} registers at layer {layer}, which were never trained; accepted are {known}; "
            "train your own with `python -m vlm_eff.reference.train_registers`"
        )
    return Path(__file__).resolve().parent / "registers" / f"r{registers}_layer{layer}.safetensors"


def load_reference(
    dtype: str = "float32", attn_implementation: str = "sdpa"
) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """Load the bundled model in evaluation mode, and its processor."""
    from .loading import load_folder

    return load_folder(reference_folder(), dtype, attn_implementation)
