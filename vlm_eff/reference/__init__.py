"""The bundled reference model: a small LLaVA trained by this package on scenes of its own and on easy-VQA.

What lives here: scene and question generators, training, weights, loading, evaluation. What does not: any plugin.
Start reading at `scenes.py`, then `batches.py` and `train.py`. Nothing heavy is imported until it is asked for.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import LlavaForConditionalGeneration, LlavaProcessor

__all__ = ["load_reference", "reference_folder"]


def reference_folder() -> Path:
    """Return the folder of the bundled model, fit for `from_pretrained`."""
    return Path(__file__).resolve().parent / "small_vlm"


def load_reference(
    dtype: str = "float32", attn_implementation: str = "sdpa"
) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """Load the bundled model in evaluation mode, and its processor."""
    from .loading import load_folder

    return load_folder(reference_folder(), dtype, attn_implementation)
