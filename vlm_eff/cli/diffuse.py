"""`vlm-eff diffuse`: a picture with plugins, or each plugin beside the full run and beside fewer steps."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

import vlm_eff
from vlm_eff.cli.output import print_json, print_table, print_text, progress
from vlm_eff.cli.run import plugins_of
from vlm_eff.core.errors import ConfigError, explain
from vlm_eff.core.files import make_folder, png, write_file
from vlm_eff.core.handle import Handle
from vlm_eff.eval.contact_sheet import contact_sheet, to_image
from vlm_eff.eval.denoising import DenoiseArm, DenoiseComparison, compare_denoising
from vlm_eff.eval.loading import quiet_libraries
from vlm_eff.eval.painter import Painter, load_painter


@dataclass(frozen=True)
class DiffuseOptions:
    """What the command line said."""

    prompt: str
    classes: tuple[int, ...]
    plugins: list[str]
    model: str
    steps: int
    guidance: float
    seed: int
    pairs: int
    dtype: str
    device: str
    as_json: bool
    save: Path | None


def diffuse_once(options: DiffuseOptions) -> None:
    """Draw once, with all plugins attached together, or bare when there are none."""
    plugins = plugins_of(options.plugins)
    painter, folder = _prepare(options)
    with progress("drawing"):
        attached: AbstractContextManager[Handle | None] = (
            vlm_eff.attach(painter.pipe, *plugins.values()) if plugins else nullcontext()
        )
        with attached as handle:
            pictures = painter.paint(steps=options.steps, guidance=options.guidance, seed=options.seed)
    result = {
        "model": painter.name,
        "steps": options.steps,
        "guidance": options.guidance,
        "seed": options.seed,
        "plugins": {spec: plugin.to_dict() for spec, plugin in plugins.items()},
        "stats": None if handle is None else handle.stats().to_dict(),
    }
    if folder is not None:
        for number, picture in enumerate(pictures):
            write_file(folder / f"picture-{number + 1}.png", png(to_image(picture)))
        write_file(folder / "stats.json", json.dumps(result, indent=2) + "\n")
    if options.as_json:
        print_json(result)
        return
    print_text(f"{len(pictures)} pictures of {options.steps} steps" + (f" in {folder}" if folder else ", not saved"))
    if handle is not None:
        print_text(str(handle.stats()))


def diffuse_compare(options: DiffuseOptions) -> None:
    """Draw in full, with each plugin alone and with fewer steps at the same cost, and print one table."""
    plugins = plugins_of(options.plugins)
    if not plugins:
        raise ConfigError(
            explain("--compare without --plugin", "one --plugin or more", "Name one, such as --plugin forecast")
        )
    painter, folder = _prepare(options)
    with progress("drawing in full, with each plugin, and with fewer steps"):
        found = compare_denoising(
            painter,
            plugins,
            steps=options.steps,
            guidance=options.guidance,
            seed=options.seed,
            pairs=options.pairs,
        )
    result = found.to_dict() | {"plugins": {spec: plugin.to_dict() for spec, plugin in plugins.items()}}
    if folder is not None:
        labels = ["full run", *(f"{arm.plugin}  ({arm.psnr:.1f} dB)" for arm in found.arms)]
        write_file(folder / "compare.png", png(contact_sheet(found.pictures, labels)))
        write_file(folder / "compare.json", json.dumps(result, indent=2) + "\n")
    if options.as_json:
        print_json(result)
    else:
        print_table(denoising_table(found))


def denoising_table(found: DenoiseComparison) -> Table:
    """One row for the full run, one for each plugin, one for each number of fewer steps."""
    caption = (
        f"{found.model}, {found.steps} steps of {found.scheduler}, guidance {found.guidance:g}, seed {found.seed}; "
        "PSNR to the full run; evaluations weighted by FLOPs; steps: # computed, + in part, . predicted; "
        f"time with the plugin / bare on {found.device}"
    )
    table = Table("", "evaluations", "share", "PSNR", "kept", "time", "steps", caption=caption)
    bare = found.arms[0].evaluations_bare
    table.add_row("full run", f"{bare:g}", "100%", "-", "-", "1", "#" * found.steps)
    for arm in found.arms:
        time = "not timed" if arm.time is None else str(arm.time)
        share = f"{arm.evaluations / arm.evaluations_bare:.0%}"
        table.add_row(
            arm.plugin,
            f"{arm.evaluations:.2f}",
            share,
            f"{arm.psnr:.1f} dB",
            f"{arm.state_bytes:,} B",
            time,
            step_marks(arm),
        )
    return table


def step_marks(arm: DenoiseArm) -> str:
    """A letter a step: computed, computed in part, or predicted."""
    return "".join("#" if share > 0.999 else "." if share < 0.001 else "+" for share in arm.computed)


def _prepare(options: DiffuseOptions) -> tuple[Painter, Path | None]:
    folder = None if options.save is None else make_folder(options.save)
    quiet_libraries()
    with progress("loading the pipeline"):
        painter = load_painter(
            options.model,
            prompt=options.prompt,
            classes=options.classes,
            dtype=options.dtype,
            device=options.device,
        )
    return painter, folder
