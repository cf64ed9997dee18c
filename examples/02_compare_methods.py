"""Ask one question with several methods, all set to the same budget: tokens averaged over layers."""

from vlm_eff.eval.compare import compare
from vlm_eff.eval.loading import load_subject, quiet_libraries
from vlm_eff.reference.scenes import make_scene, render
from vlm_eff.tokens import for_budget

quiet_libraries()
subject = load_subject(device="cpu")
layers = subject.model.config.text_config.num_hidden_layers
names = ("fastv", "pyramiddrop", "feather", "uniform_grid")
plugins = {name: for_budget(name, n_eq=60, visual_tokens=144, num_layers=layers) for name in names}

found = compare(subject, [render(make_scene(3, "test"))], "how many objects are there?", plugins, pairs=8)

print(f"{'bare':14s} answers {found.bare_answer!r}")
for arm in found.arms:
    print(f"{arm.plugin:14s} answers {arm.answer!r}, n_eq {arm.n_eq:.1f} of {arm.visual_tokens:.0f}", end=", ")
    print(f"FLOPs x{arm.prefill_flops_ratio:.2f}, KV x{arm.kv_bytes_ratio:.2f}, first token x{arm.time_to_first_token}")
print(f"timing: {found.timing}")
