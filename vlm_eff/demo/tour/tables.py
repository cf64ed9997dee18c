"""The demo's results in the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from vlm_eff.demo.tour.asking import Asked, Score
from vlm_eff.eval.compare import Arm

PHOTOGRAPH_NOTE = (
    "The bundled model was trained on drawn shapes only: on a photograph it cannot know the answer. What is real there "
    "are the token counts, the savings, and which parts of the picture each method keeps."
)


def question_table(asked: Asked) -> Table:
    """One picture: the bare answer, then every setting."""
    question, found = asked.question, asked.comparison
    truth = "no right answer known" if question.truth is None else f"right answer: {question.truth}"
    table = Table(
        "",
        "answer",
        "right",
        "n_eq",
        "FLOPs",
        "KV bytes",
        "first token",
        title=f"{question.title} ({question.source}): {question.text}  [{truth}]".replace("[", "\\["),
        title_justify="left",
    )
    tokens = f"{found.arms[0].visual_tokens:g}"
    table.add_row("bare", found.bare_answer, verdict(asked, found.bare_answer), tokens, "1", "1", "1")
    for arm in found.arms:
        ratios = (f"{arm.n_eq:.1f}", f"{arm.prefill_flops_ratio:.2f}", f"{arm.kv_bytes_ratio:.2f}", time_of(arm))
        table.add_row(arm.plugin, arm.answer, verdict(asked, arm.answer), *ratios)
    return table


def score_table(scores: Sequence[Score]) -> Table:
    """Accuracy of every setting over the same questions."""
    table = Table("", "right", "same answer as bare", title=f"{scores[0].questions} {scores[0].task}")
    for row in scores:
        table.add_row(row.label, share(row.right, row.questions), share(row.same_as_bare, row.questions))
    return table


def verdict(asked: Asked, answer: str) -> str:
    """Whether an answer is right, in a word."""
    if asked.question.truth is None:
        return "-"
    return "yes" if answer == asked.question.truth else "no"


def time_of(arm: Arm) -> str:
    """The paired ratio of the time to the first token, in words when there is none."""
    return "not timed" if arm.time_to_first_token is None else str(arm.time_to_first_token)


def share(part: int, whole: int) -> str:
    """A count with its whole, in per cent too."""
    return f"{part}/{whole} ({part / whole:.0%})"
