"""Everything a handle can tell: reports, survivors, places in the picture, cache positions."""

from vlm_eff import attach, plugin
from vlm_eff.reference import load_reference
from vlm_eff.reference.scenes import make_scene, render

model, processor = load_reference()
text = "user: <image> where is the word? assistant:"
inputs = processor(images=render(make_scene(3, "test")), text=text, return_tensors="pt")

with attach(model, plugin("pyramiddrop:keep_ratio=0.5")) as handle:
    reduced = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    report = handle.stats().last
    print("visual tokens at each layer:", report.visual_per_layer)
    print("asked at each layer:        ", [round(count) for count in report.asked_per_layer])
    print(f"n_eq {report.n_eq:.1f} of {report.visual_tokens:.0f}; KV bytes {report.kv_bytes} of {report.kv_bytes_bare}")
    print("first survivors at layer 4: ", handle.survivors(4)[0][:8].tolist())
    print("stored at layer 4 (B, H, S):", tuple(handle.kv_positions(4).shape))
    tokens = handle.visual(6)[0]
    for y in range(int(tokens.y.max()) + 1):
        print("  " + "".join(".#"[int(kept)] for kept in tokens.kept[tokens.y == y]))
    with handle.paused():
        bare = model.generate(**inputs, max_new_tokens=4, do_sample=False)

print("same answer as the bare model:", reduced.tolist() == bare.tolist())
print("as JSON:", sorted(handle.stats().to_dict()))
