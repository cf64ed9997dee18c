"""Ask one question with three methods and a blind baseline, all set to one budget: tokens averaged over layers.

On a real model: python examples/04_compare_methods.py --model Qwen/Qwen2.5-VL-3B-Instruct (or smol)
"""

import typer

from vlm_eff.eval.budgets import settings_at, sizes_of
from vlm_eff.eval.compare import compare
from vlm_eff.eval.loading import load_subject, quiet_libraries
from vlm_eff.reference.scenes import make_scene, render

METHODS = ("fastv", "pyramiddrop", "feather", "uniform_grid")


def main(model: str | None = None, pairs: int = 8) -> None:
    quiet_libraries()
    subject = load_subject(model)
    pictures, question = [render(make_scene(3, "test"))], "how many objects are there?"
    # 40 % of the visual tokens, whatever it takes of each method's own settings
    settings = settings_at(sizes_of(subject, pictures, question), METHODS, [0.4])
    plugins = {setting.label: setting.plugin for setting in settings}

    found = compare(subject, pictures, question, plugins, pairs=pairs)

    print(f"{'bare':18s} answers {found.bare_answer!r}")
    for arm in found.arms:
        print(f"{arm.plugin:18s} answers {arm.answer!r}, n_eq {arm.n_eq:.1f} of {arm.visual_tokens:.0f}", end=", ")
        print(f"FLOPs x{arm.prefill_flops_ratio:.2f}, KV x{arm.kv_bytes_ratio:.2f}", end=", ")
        print(f"first token x{arm.time_to_first_token}")
    print(f"timing: {found.timing}")


if __name__ == "__main__":
    typer.run(main)
