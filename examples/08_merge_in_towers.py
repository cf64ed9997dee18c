"""Towers without a language model: merge alike tokens in a ViT of timm and in one of open_clip.

The weights are random, so that nothing is downloaded: counts and FLOPs are true, the change of the output is not.
On real models: python examples/08_merge_in_towers.py --model vit_small_patch16_224 --clip ViT-B-16
"""

import open_clip
import timm
import torch
import typer

from vlm_eff import attach
from vlm_eff.eval.loading import quiet_libraries
from vlm_eff.reference.scenes import make_scene, render
from vlm_eff.tokens import tome


def clip_tower(name: str | None) -> torch.nn.Module:
    if name is not None:
        return open_clip.create_model(name, pretrained="openai").visual.eval()
    vision = {"image_size": 224, "patch_size": 16, "layers": 6, "width": 128}
    text = {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1}
    return open_clip.CLIP(embed_dim=64, vision_cfg=vision, text_cfg=text).visual.eval()


def main(model: str | None = None, clip: str | None = None) -> None:
    quiet_libraries()
    torch.manual_seed(0)
    towers = {
        "timm": timm.create_model(model or "vit_tiny_patch16_224", pretrained=model is not None).eval(),
        "open_clip": clip_tower(clip),
    }
    pictures = [render(make_scene(seed, "test")).resize((224, 224)) for seed in range(4)]
    pixels = torch.stack([torch.frombuffer(bytearray(one.tobytes()), dtype=torch.uint8) for one in pictures])
    pixels = pixels.view(4, 224, 224, 3).permute(0, 3, 1, 2) / 127.5 - 1
    for name, tower in towers.items():
        for r in (0, 8, 16):
            with torch.inference_mode():
                bare = tower(pixels)
                with attach(tower, tome(r=r)) as handle:
                    merged = tower(pixels)
            report = handle.stats().towers[-1]
            change = (merged - bare).norm() / bare.norm()
            print(f"{name:9s} r={r:2d}: {report.tokens[0]} tokens, {report.left[0]} behind the last block", end=", ")
            print(f"FLOPs x{report.flops / report.flops_bare:.2f}, output changed by {change:.2%}")


if __name__ == "__main__":
    typer.run(main)
