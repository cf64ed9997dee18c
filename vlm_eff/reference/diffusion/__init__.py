"""Small trained diffusion models in unmodified pipelines of diffusers: a UNet and a DiT that draw ten kinds of shapes.

    pipeline = load_small_unet_pipeline()                      # a StableDiffusionPipeline
    picture = pipeline(**class_prompts([3]), num_inference_steps=20, guidance_scale=1.5).images[0]

    pipeline = load_small_dit_pipeline()                       # a DiTPipeline
    picture = pipeline(pipeline.get_label_ids(["warm ring"]), num_inference_steps=20, guidance_scale=1.5).images[0]

`generate` asks either for tensors with one seed a picture. Pictures are 16x16 pixels; a class is an index of `CLASSES`.
Start reading at `shapes.py`, then `trainer.py`. Nothing of diffusers is imported until it is asked for.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ...core.errors import InputError, explain
from .shapes import CLASSES, IMAGE_SIZE, NULL_CLASS, shape_batch

if TYPE_CHECKING:
    import torch
    from diffusers import DiTPipeline, StableDiffusionPipeline

    from .classifier import ShapeClassifier

__all__ = [
    "CLASSES",
    "IMAGE_SIZE",
    "NULL_CLASS",
    "class_prompts",
    "generate",
    "load_classifier",
    "load_small_dit_pipeline",
    "load_small_unet_pipeline",
    "need_diffusers",
    "shape_batch",
]


def load_small_unet_pipeline() -> StableDiffusionPipeline:
    """Return an unmodified `StableDiffusionPipeline` around the bundled UNet, float32, with DPM-Solver++ 2M.

    It has no text encoder: `class_prompts` gives the prompts. Its VAE is the identity, so latents are pixels, and
    every output type works.

    Raises:
        InputError: diffusers is not installed.
    """
    need_diffusers()
    from .pipelines import load_unet_pipeline

    return load_unet_pipeline()


def load_small_dit_pipeline() -> DiTPipeline:
    """Return an unmodified `DiTPipeline` around the bundled DiT, float32, with DPM-Solver++ 2M.

    Class ids 0 to 9 are those of `CLASSES`; 1000 is the empty class, which the pipeline asks for by itself. Its VAE is
    the identity, so latents are pixels.

    Raises:
        InputError: diffusers is not installed.
    """
    need_diffusers()
    from .pipelines import load_dit_pipeline

    return load_dit_pipeline()


def load_classifier() -> ShapeClassifier:
    """Return the bundled classifier of shapes, which judges generated pictures; needs no diffusers."""
    from .classifier import load_classifier as load

    return load()


def class_prompts(labels: Sequence[int]) -> dict[str, torch.Tensor]:
    """Return the arguments that stand for prompts, `prompt_embeds` and `negative_prompt_embeds`, each [B, 4, 32].

    Raises:
        InputError: diffusers is not installed, or an id that is no class.
    """
    need_diffusers()
    from .pipelines import class_prompts as prompts

    return prompts(labels)


def generate(
    pipeline: Any, labels: Sequence[int], *, steps: int = 20, guidance: float = 1.5, seed: int = 0, **settings: Any
) -> torch.Tensor:
    """Return one picture for each class id, [B, 3, 16, 16] in -1 to 1, from either small pipeline.

    Every picture has its own stream of noise, so it does not depend on the others of its batch; `settings` go to the
    pipeline.

    Raises:
        InputError: diffusers is not installed, or an id that is no class.
    """
    need_diffusers()
    from .pipelines import generate as run

    return run(pipeline, labels, steps=steps, guidance=guidance, seed=seed, **settings)


def need_diffusers() -> None:
    """Raise `InputError` where diffusers is not installed."""
    if importlib.util.find_spec("diffusers") is None:
        raise InputError(
            explain("diffusers is not installed", "the extra `diffusion`", "Run: pip install 'vlm-eff[diffusion]'")
        )
