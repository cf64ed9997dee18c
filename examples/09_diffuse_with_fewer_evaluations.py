"""Draw with an unmodified diffusers pipeline: in full, with half of the evaluations, and with half of the steps.

On a real model: python examples/09_diffuse_with_fewer_evaluations.py --model HUB_ID_OR_FOLDER --prompt "a red bicycle"
"""

import torch
import typer
from diffusers import DiffusionPipeline

from vlm_eff import attach
from vlm_eff.diffusion import forecast
from vlm_eff.eval.generated import psnr
from vlm_eff.eval.loading import device_of, quiet_libraries
from vlm_eff.reference.diffusion import CLASSES, class_prompts, load_small_unet_pipeline


def main(model: str | None = None, prompt: str = "a red bicycle") -> None:
    quiet_libraries()
    # the bundled pipeline is a StableDiffusionPipeline of 16x16 pixels, with a class in place of a prompt
    pipe = DiffusionPipeline.from_pretrained(model) if model else load_small_unet_pipeline()
    pipe.to(device_of("auto")).set_progress_bar_config(disable=True)
    asked = {"prompt": prompt} if model else class_prompts(range(len(CLASSES)))

    def draw(steps: int) -> torch.Tensor:
        noise = torch.Generator().manual_seed(0)
        return pipe(**asked, num_inference_steps=steps, generator=noise, output_type="pt").images

    full = draw(20)
    with attach(pipe, forecast(evaluations=10)) as handle:
        forecast_pictures = draw(20)
    fewer = draw(10)

    print(handle.stats())
    # pictures are 0 to 1 here
    print(f"PSNR to the full run: forecast {psnr(full, forecast_pictures, 1.0).mean():.1f} dB", end=", ")
    print(f"10 steps of the same solver {psnr(full, fewer, 1.0).mean():.1f} dB")


if __name__ == "__main__":
    typer.run(main)
