"""`vlm-eff run`: one question about pictures, with plugins, or each plugin beside the bare model."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from rich.table import Table

import vlm_eff
from vlm_eff.cli.output import print_json, print_table, print_text, progress, say
from vlm_eff.core.errors import CapabilityError, ConfigError, explain
from vlm_eff.core.files import make_folder, png, write_file
from vlm_eff.core.handle import Handle
from vlm_eff.core.plugin import Plugin
from vlm_eff.eval.compare import Arm, Comparison, compare
from vlm_eff.eval.loading import load_subject, quiet_libraries
from vlm_eff.eval.overlay import overlay
from vlm_eff.eval.subject import Subject, open_image


@dataclass(frozen=True)
class RunOptions:
    """What the command line said."""

    images: list[Path]
    prompt: str
    plugins: list[str]
    model: str | None
    max_new_tokens: int
    pairs: int
    dtype: str
    device: str
    attention: str
    as_json: bool
    save: Path | None


def run_once(options: RunOptions) -> None:
    """Ask once, with all plugins attached together, or bare when there are none."""
    plugins = plugins_of(options.plugins)
    subject, images, folder = _prepare(options)
    with progress("answering"):
        inputs = subject.inputs(images, options.prompt)
        attached: AbstractContextManager[Handle | None] = (
            vlm_eff.attach(subject.model, *plugins.values()) if plugins else nullcontext()
        )
        with attached as handle:
            answer = subject.answer(inputs, max_new_tokens=options.max_new_tokens)
    stats = None if handle is None else handle.stats()
    result = {
        "model": subject.name,
        "images": [str(path) for path in options.images],
        "prompt": options.prompt,
        "plugins": {spec: plugin.to_dict() for spec, plugin in plugins.items()},
        "answer": answer,
        "stats": None if stats is None else stats.to_dict(),
    }
    if folder is not None:
        _write(folder, answer, result)
        if handle is not None:
            _draw(folder, subject, images, "overlay", handle)
    if options.as_json:
        print_json(result)
        return
    print_text(answer)
    if stats is not None:
        print_text(str(stats))


def run_compare(options: RunOptions) -> None:
    """Ask bare and with each plugin alone, and print one table."""
    plugins = plugins_of(options.plugins)
    if not plugins:
        raise ConfigError(
            explain(
                "--compare without --plugin", "one --plugin or more", "Name what to compare, such as --plugin fastv"
            )
        )
    subject, images, folder = _prepare(options)

    def watch(spec: str, handle: Handle) -> None:
        if folder is not None:
            _draw(folder, subject, images, f"overlay-{list(plugins).index(spec) + 1}-{plugins[spec].name}", handle)

    with progress("asking the bare model and each plugin"):
        found = compare(
            subject,
            images,
            options.prompt,
            plugins,
            max_new_tokens=options.max_new_tokens,
            pairs=options.pairs,
            watch=watch,
        )
    result = found.to_dict() | {"plugins": {spec: plugin.to_dict() for spec, plugin in plugins.items()}}
    if folder is not None:
        _write(folder, found.bare_answer, result)
    if options.as_json:
        print_json(result)
    else:
        print_table(comparison_table(found))


def comparison_table(found: Comparison) -> Table:
    """One row for the bare model and one for each plugin; ratios are plugin / bare."""
    timed = any(arm.time_to_first_token for arm in found.arms)
    caption = "ratios: with the plugin / bare; FLOPs and KV of the decoder"
    if timed:
        pairs = next(arm.time_to_first_token.pairs for arm in found.arms if arm.time_to_first_token)
        caption += f"; time to first token: median of {pairs} pairs [95 %], {found.timing}"
    table = Table("", "answer", "n_eq asked", "n_eq", "FLOPs", "KV bytes", "first token", caption=caption)
    tokens = f"{found.arms[0].visual_tokens:g}"
    table.add_row("bare", found.bare_answer, tokens, tokens, "1", "1", "1")
    for arm in found.arms:
        table.add_row(*_cells(arm))
    return table


def _cells(arm: Arm) -> tuple[str, ...]:
    time = "not timed" if arm.time_to_first_token is None else str(arm.time_to_first_token)
    asked, got = f"{arm.n_eq_asked:.1f}", f"{arm.n_eq:.1f}"
    return arm.plugin, arm.answer, asked, got, f"{arm.prefill_flops_ratio:.2f}", f"{arm.kv_bytes_ratio:.2f}", time


def plugins_of(specs: list[str]) -> dict[str, Plugin]:
    """Plugins by the spec that names each of them.

    Raises:
        ConfigError: a spec that stands twice, or that cannot be read.
    """
    refuse_repeated(specs)
    return {spec: vlm_eff.plugin(spec) for spec in specs}


def together_of(specs: list[str]) -> dict[str, tuple[Plugin, ...]]:
    """Plugins that are attached together, by the spec that names them; one with " + " holds several.

    Raises:
        ConfigError: a spec that stands twice, or that cannot be read.
    """
    refuse_repeated(specs)
    return {spec: tuple(plugins_of([one.strip() for one in spec.split(" + ")]).values()) for spec in specs}


def refuse_repeated(specs: list[str]) -> None:
    """Raise `ConfigError` when a spec stands twice."""
    repeated = {spec for spec in specs if specs.count(spec) > 1}
    if repeated:
        raise ConfigError(explain(f"--plugin {repeated.pop()} twice", "each plugin once", "Leave one of them out"))


def _prepare(options: RunOptions) -> tuple[Subject, list[Image.Image], Path | None]:
    """Pictures first: a wrong path must not wait for a model; the folder too, so that no answer is lost."""
    images = [open_image(path) for path in options.images]
    folder = None if options.save is None else make_folder(options.save)
    quiet_libraries()
    with progress("loading the model"):
        subject = load_subject(options.model, dtype=options.dtype, device=options.device, attention=options.attention)
    return subject, images, folder


def _write(folder: Path, answer: str, result: dict[str, Any]) -> None:
    write_file(folder / "answer.txt", answer + "\n")
    write_file(folder / "stats.json", json.dumps(result, indent=2) + "\n")


def _draw(folder: Path, subject: Subject, images: list[Image.Image], name: str, handle: Handle) -> None:
    """One picture an image, of what is left at the last layer."""
    report = handle.stats().last
    assert report is not None  # a picture was asked about
    tokens = handle.visual(len(report.visual_per_layer) - 1)[0]
    for number, image in enumerate(images):
        try:
            drawn = overlay(subject.seen(image), tokens, number)
        except CapabilityError as error:
            say(f"no overlay: {error}")
            return
        write_file(folder / f"{name}-{number + 1}.png", png(drawn))
