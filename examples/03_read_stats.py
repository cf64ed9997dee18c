"""Everything a handle can tell: reports, survivors, places in the picture, cache positions.

On a real model: python examples/03_read_stats.py --model llava-hf/llava-1.5-7b-hf (or smol)
"""

import typer

from vlm_eff import attach, plugin
from vlm_eff.eval.loading import load_subject, quiet_libraries
from vlm_eff.reference.scenes import make_scene, render


def main(model: str | None = None) -> None:
    quiet_libraries()
    subject = load_subject(model)  # a model with its processor: `subject.model` is the unmodified one
    inputs = subject.inputs([render(make_scene(3, "test"))], "where is the word?")
    last = subject.model.config.get_text_config().num_hidden_layers - 1

    with attach(subject.model, plugin("pyramiddrop:keep_ratio=0.5")) as handle:
        reduced = subject.answer(inputs, max_new_tokens=8)
        report = handle.stats().last
        print("visual tokens at each layer:", [round(count) for count in report.visual_per_layer])
        print("asked at each layer:        ", [round(count) for count in report.asked_per_layer])
        print(f"n_eq {report.n_eq:.1f} of {report.visual_tokens:.0f}", end=", ")
        print(f"KV bytes {report.kv_bytes} of {report.kv_bytes_bare}")
        print("survivors at the last layer:", handle.survivors(last)[0][:8].tolist(), "...")
        print("its cache (batch, heads, entries):", tuple(handle.kv_positions(last).shape))
        tokens = handle.visual(last)[0]
        first_tile = tokens.group == 0
        for y in range(int(tokens.y[first_tile].max()) + 1):
            print("  " + "".join(".#"[int(kept)] for kept in tokens.kept[first_tile & (tokens.y == y)]))
        with handle.paused():
            bare = subject.answer(inputs, max_new_tokens=8)

    print(f"answers {reduced!r}, bare {bare!r}")
    print("as JSON:", ", ".join(sorted(handle.stats().to_dict())))


if __name__ == "__main__":
    typer.run(main)
