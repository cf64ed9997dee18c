"""The small models inside the pipelines of diffusers, which stay as they are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DiTPipeline, DPMSolverMultistepScheduler, StableDiffusionPipeline
from safetensors.torch import load_file

from ...core.errors import InputError, explain
from .dit import PIPELINE_NULL, build_dit
from .noise import SCHEDULER_CONFIG
from .pixel_vae import PixelVAE
from .shapes import CLASSES, NULL_CLASS
from .unet import PROMPT_SIZE, PROMPT_TOKENS, build_unet
from .weights import weights_of

_MODEL, _PROMPTS, _CLASS_ROWS = "model.", "prompts.weight", "class_embedder.embedding_table.weight"


def load_unet_pipeline(path: Path | None = None) -> StableDiffusionPipeline:
    """Return a `StableDiffusionPipeline` around the small UNet; prompts are given by `class_prompts`."""
    state = _read(path or weights_of("unet"))
    unet = build_unet()
    unet.load_state_dict(_part(state))
    pipeline = StableDiffusionPipeline(
        vae=PixelVAE(),
        text_encoder=None,
        tokenizer=None,
        unet=unet.eval(),
        scheduler=_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def load_dit_pipeline(path: Path | None = None) -> DiTPipeline:
    """Return a `DiTPipeline` around the small DiT; class ids are those of `CLASSES`."""
    state = _part(_read(path or weights_of("dit")))
    transformer = build_dit()
    transformer.load_state_dict(
        {key: _all_rows(value) if _CLASS_ROWS in key else value for key, value in state.items()}
    )
    names = dict(enumerate(CLASSES))
    pipeline = DiTPipeline(transformer.eval(), PixelVAE(), _scheduler(), id2label=names)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def class_prompts(labels: Sequence[int], path: Path | None = None) -> dict[str, torch.Tensor]:
    """Return the prompts of class ids, as `StableDiffusionPipeline` takes them: `pipeline(**class_prompts([3, 7]))`.

    Both tensors, with and without the class, are [B, 4, 32].

    Raises:
        InputError: an id that is no class.
    """
    ids = torch.tensor([check_class(label) for label in labels])
    table = _read(path or weights_of("unet"))[_PROMPTS].view(-1, PROMPT_TOKENS, PROMPT_SIZE)
    return {"prompt_embeds": table[ids], "negative_prompt_embeds": table[NULL_CLASS].expand(len(ids), -1, -1).clone()}


def check_class(label: int) -> int:
    """Return the id of a class.

    Raises:
        InputError: an id that is no class.
    """
    if not 0 <= label < len(CLASSES):
        raise InputError(explain(f"class {label}", f"0 to {len(CLASSES) - 1}", "Look at CLASSES"))
    return int(label)


def generate(
    pipeline: Any, labels: Sequence[int], *, steps: int = 20, guidance: float = 1.5, seed: int = 0, **settings: Any
) -> torch.Tensor:
    """Return one picture for each class id, [B, 3, 16, 16] in -1 to 1, from either small pipeline.

    Every picture has its own stream of noise, so it does not depend on the others of its batch; `settings` go to the
    pipeline.

    Raises:
        InputError: an id that is no class.
    """
    ids = [check_class(label) for label in labels]
    streams = [torch.Generator().manual_seed(seed * 1_000_003 + place) for place in range(len(ids))]
    asked = {"num_inference_steps": steps, "guidance_scale": guidance, "generator": streams, "output_type": "pt"}
    if isinstance(pipeline, DiTPipeline):
        asked["class_labels"] = ids
    else:
        asked.update(class_prompts(ids))
    return pipeline(**asked, **settings).images * 2 - 1


def shipped_state(denoiser: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return what is shipped of a trained denoiser: of the DiT's class tables only the rows that were trained."""
    trained = torch.tensor([*range(NULL_CLASS), PIPELINE_NULL])
    state = denoiser.state_dict()
    return {key: value[trained] if _CLASS_ROWS in key else value for key, value in state.items()}


def _all_rows(trained: torch.Tensor) -> torch.Tensor:
    """Return a class table with the 1001 rows that the pipeline may ask for; rows of no class are zero."""
    table = trained.new_zeros(PIPELINE_NULL + 1, trained.shape[1])
    table[:NULL_CLASS], table[PIPELINE_NULL] = trained[:NULL_CLASS], trained[NULL_CLASS]
    return table


def _part(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key.removeprefix(_MODEL): value for key, value in state.items() if key.startswith(_MODEL)}


def _read(path: Path) -> dict[str, torch.Tensor]:
    return {key: value.float() for key, value in load_file(path).items()}


def _scheduler() -> DPMSolverMultistepScheduler:
    return DPMSolverMultistepScheduler(**SCHEDULER_CONFIG)
