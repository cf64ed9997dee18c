"""How noisy a picture is at a timestep: one schedule for training and for every pipeline."""

from __future__ import annotations

from typing import Any

import torch

# what every scheduler of the small pipelines is built with; a cosine schedule ends close to pure noise
SCHEDULER_CONFIG: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_schedule": "squaredcos_cap_v2",
    "prediction_type": "v_prediction",
    # Sampling must start at the last timestep, which is almost pure noise (Lin et al. 2023, section 3.3). Named here,
    # because `from_config` of another class puts its own default in the place of a default: DDIM would start at 901.
    "timestep_spacing": "trailing",
    # what `StableDiffusionPipeline` asks of a scheduler
    "steps_offset": 1,
}


def noise_levels() -> tuple[torch.Tensor, torch.Tensor]:
    """Return the factors of picture and noise at each of the 1000 timesteps; their squares add up to 1."""
    from diffusers import DDPMScheduler

    kept = DDPMScheduler(**SCHEDULER_CONFIG).alphas_cumprod
    return kept.sqrt(), (1 - kept).sqrt()
