"""Loading a reference model from a folder, the bundled one or one of your own training."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoProcessor, LlavaForConditionalGeneration, LlavaProcessor


def load_folder(
    folder: Path, dtype: str = "float32", attn_implementation: str = "sdpa"
) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """Load model (evaluation mode) and processor from a folder.

    Raises:
        FileNotFoundError: the folder holds no weights.
    """
    if not (folder / "model.safetensors").is_file():
        raise FileNotFoundError(
            f"got folder {folder}, which holds no model.safetensors; accepted is a folder written by "
            "`python -m vlm_eff.reference.train`; train one or reinstall vlm_eff"
        )
    model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=dtype, attn_implementation=attn_implementation)
    return model.eval(), AutoProcessor.from_pretrained(folder)
