"""The demo as a script: asks, prints tables, writes an HTML page."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from vlm_eff.core.errors import VlmEffError
from vlm_eff.core.files import make_folder, write_file
from vlm_eff.demo.tour.asking import Asked, Score, ask, score, spread
from vlm_eff.demo.tour.html import page
from vlm_eff.demo.tour.pictures import Question, easy_vqa_pictures, photographs, scene_pictures
from vlm_eff.demo.tour.tables import PHOTOGRAPH_NOTE, question_table, score_table
from vlm_eff.eval.budgets import Setting, settings_at, sizes_of
from vlm_eff.eval.loading import load_subject, quiet_libraries
from vlm_eff.eval.subject import Subject
from vlm_eff.reference.evaluate import Sample, easy_vqa_samples, scene_samples

METHODS = ("fastv", "pyramiddrop", "feather", "uniform_grid")
SHARES = (1 / 2, 1 / 3)
# behind the scenes that are shown
_FIRST_SCENE = 100


def demo(
    output: Annotated[Path, typer.Option(help="Folder of the page.")] = Path("out/demo"),
    model: Annotated[str | None, typer.Option(help="Folder of another model with the same prompts.")] = None,
    pictures: Annotated[int, typer.Option(min=1, help="easy-VQA pictures and drawn scenes that are shown.")] = 3,
    questions: Annotated[int, typer.Option(min=1, help="Questions of each kind that are counted.")] = 60,
    pairs: Annotated[int, typer.Option(min=0, help="Timed pairs a picture and setting; 0 times nothing.")] = 8,
) -> None:
    """Ask pictures of the bundled model, bare and with four methods at two budgets."""
    console = Console(width=None if sys.stdout.isatty() else 120)
    quiet_libraries()
    try:
        folder = make_folder(output)
        asked_of = [*photographs(), *easy_vqa_pictures(pictures), *scene_pictures(pictures)]
        subject = load_subject(model, device="cpu")
        sizes = sizes_of(subject, [asked_of[0].image], asked_of[0].text)
        settings = settings_at(sizes, METHODS, SHARES)
        asked, scores = _ask_all(console, subject, asked_of, settings, questions, pairs)
    except VlmEffError as error:
        typer.echo(f"vlm-eff demo: {error}", err=True)
        raise typer.Exit(1) from None
    for one in asked:
        console.print(question_table(one))
    for task in scores:
        console.print(score_table(task))
    console.print(
        f"n_eq: visual tokens averaged over {sizes.num_layers} layers, of {sizes.visual_tokens}. FLOPs, KV bytes and "
        f"first token: with the method / bare ({asked[0].comparison.timing}). " + PHOTOGRAPH_NOTE
    )
    written = write_file(folder / "index.html", page(asked, scores, subject.name))
    console.print(f"Pictures of what each method keeps: {written}")


def _ask_all(
    console: Console,
    subject: Subject,
    questions: list[Question],
    settings: list[Setting],
    counted: int,
    pairs: int,
) -> tuple[list[Asked], list[list[Score]]]:
    with Progress(console=console, transient=True) as bar:
        shown = bar.add_task("pictures", total=len(questions))
        asked = []
        for question in questions:
            asked.append(ask(subject, question, settings, pairs))
            bar.advance(shown)
        tasks = {
            "easy-VQA test questions": easy_vqa_samples("test"),
            "questions about held-out drawn scenes": _scenes(counted),
        }
        counting = bar.add_task("accuracy", total=len(tasks) * (len(settings) + 1))
        scores = [
            score(subject, name, spread(samples, counted), settings, lambda: bar.advance(counting))
            for name, samples in tasks.items()
        ]
    return asked, scores


def _scenes(counted: int) -> list[Sample]:
    # a scene allows five questions or more
    return scene_samples("test", 40 + counted // 5, _FIRST_SCENE)
