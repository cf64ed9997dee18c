"""A transformers pipeline stays what it is: plugins go on it, and come off it.

On a real model: python examples/02_use_a_pipeline.py --model Qwen/Qwen2.5-VL-3B-Instruct
"""

import typer
from transformers import pipeline

from vlm_eff import attach
from vlm_eff.eval.loading import quiet_libraries
from vlm_eff.kvcache import snapkv
from vlm_eff.reference import reference_folder
from vlm_eff.reference.scenes import make_scene, render
from vlm_eff.tokens import pyramiddrop


def main(model: str | None = None) -> None:
    quiet_libraries()
    pipe = pipeline("image-text-to-text", model=model or str(reference_folder()))
    chats = [
        [{"role": "user", "content": [{"type": "image", "image": render(make_scene(seed, "test"))},
                                      {"type": "text", "text": "what word is written?"}]}]
        for seed in (2, 3, 5)
    ]  # fmt: skip

    # two plugins at once: fewer visual tokens, and a small cache of what is left of them
    with attach(pipe, pyramiddrop(keep_ratio=0.5), snapkv(keep_ratio=0.5)) as handle:
        for (said,) in pipe(text=chats, max_new_tokens=4, return_full_text=False):
            print("with plugins:", said["generated_text"].strip())
    for (said,) in pipe(text=chats, max_new_tokens=4, return_full_text=False):
        print("bare:        ", said["generated_text"].strip())
    print(handle.stats())


if __name__ == "__main__":
    typer.run(main)
