"""`vlm-eff kv-meter`: what policies of the KV cache do to the attention of one answer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from vlm_eff.cli.output import print_json, print_table, progress
from vlm_eff.cli.run import together_of
from vlm_eff.core.files import check_place, write_file
from vlm_eff.eval.kv_meter import Result, kv_meter
from vlm_eff.eval.kv_plot import plot_errors
from vlm_eff.eval.loading import load_subject, quiet_libraries
from vlm_eff.eval.subject import open_image


@dataclass(frozen=True)
class MeterOptions:
    """What the command line said."""

    images: list[Path]
    prompt: str
    plugins: list[str]
    model: str | None
    steps: int
    dtype: str
    device: str
    attention: str
    as_json: bool
    plot: Path | None


def measure_cache(options: MeterOptions) -> None:
    """Measure every `--plugin` by itself; one with " + " holds several that compress one after the other."""
    plugins = together_of(options.plugins)
    images = [open_image(path) for path in options.images]
    if options.plot is not None:
        check_place(options.plot)
    quiet_libraries()
    with progress("loading the model"):
        subject = load_subject(options.model, dtype=options.dtype, device=options.device, attention=options.attention)
    with progress("answering with a full cache, then measuring each policy"):
        inputs = subject.inputs(images, options.prompt)
        found = kv_meter(subject.model, inputs, plugins, options.steps)
        drawn = None if options.plot is None else plot_errors(found)
    if options.plot is not None and drawn is not None:
        write_file(options.plot, drawn)
    if options.as_json:
        asked = {"model": subject.name, "images": [str(path) for path in options.images], "prompt": options.prompt}
        print_json(asked | found.to_dict())
    else:
        print_table(meter_table(found))


def meter_table(found: Result) -> Table:
    """One row a policy: what it keeps, and its error by layer."""
    total = sum(policy.seconds for policy in found.policies.values())
    caption = (
        f"error: |o' - o| / |o| of each layer's attention output, mean over {found.steps} queries of the answer; "
        f"prompt of {', '.join(map(str, found.prompt))} tokens, {found.bytes:,} bytes of cache; answered in "
        f"{found.answer_seconds:.2f} s, measured in {total:.2f} s on {found.device}"
    )
    table = Table("policy", "entries", "bytes", "mean error", "worst layer", "by layer", caption=caption)
    for label, policy in sorted(found.policies.items(), key=lambda item: item[1].mean):
        worst = max(range(len(policy.error)), key=policy.error.__getitem__)
        table.add_row(
            label,
            f"{sum(policy.entries) / len(policy.entries):.1f}",
            f"{policy.bytes_ratio:.1%}",
            f"{policy.mean:.4f}",
            f"{found.layers[worst]}: {policy.error[worst]:.4f}",
            " ".join(f"{error:.2f}" for error in policy.error),
        )
    return table
