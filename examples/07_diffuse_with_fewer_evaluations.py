"""Draw with an unmodified diffusers pipeline: in full, with half of the evaluations, and with half of the steps."""

from vlm_eff import attach
from vlm_eff.diffusion import forecast
from vlm_eff.eval.generated import psnr
from vlm_eff.reference.diffusion import CLASSES, generate, load_small_unet_pipeline

pipe = load_small_unet_pipeline()  # a StableDiffusionPipeline of 16x16 pixels; yours works the same
classes = range(len(CLASSES))
full = generate(pipe, classes, steps=20)

with attach(pipe, forecast(evaluations=10)) as handle:
    forecast_pictures = generate(pipe, classes, steps=20)
fewer = generate(pipe, classes, steps=10)

print(handle.stats())
print(f"PSNR to the full run: forecast {psnr(full, forecast_pictures).mean():.1f} dB", end=", ")
print(f"10 steps of the same solver {psnr(full, fewer).mean():.1f} dB")
