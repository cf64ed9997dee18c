"""A method of your own: a score of a few lines, composed with parts that are there.

On a real model: python examples/10_write_your_own_score.py --model llava-hf/llava-1.5-7b-hf (or smol)
"""

from dataclasses import dataclass

import typer
from torch import Tensor

from vlm_eff import attach
from vlm_eff.core.config import part
from vlm_eff.eval.loading import load_subject, quiet_libraries
from vlm_eff.importance.keep import Keep
from vlm_eff.models.view import View
from vlm_eff.reference.scenes import make_scene, render
from vlm_eff.tokens.reducer import TokenReducer
from vlm_eff.tokens.schedule import Stage


@part
@dataclass(frozen=True)
class HiddenNorm:
    """Length of each visual token's hidden state [B, V]; needs no observation of attention."""

    def needs(self, layer: int) -> tuple[()]:
        return ()

    def __call__(self, view: View) -> Tensor:
        return view.visual_hidden().float().norm(dim=-1)


def main(model: str | None = None) -> None:
    quiet_libraries()
    subject = load_subject(model)
    inputs = subject.inputs([render(make_scene(3, "test"))], "what word is written?")
    loudest = TokenReducer("loudest", (Stage(Keep(ratio=0.25), layer=3, score=HiddenNorm()),))
    print(loudest)
    with attach(subject.model, loudest) as handle:
        print("answer:", subject.answer(inputs, max_new_tokens=8))
    print(handle.stats())


if __name__ == "__main__":
    typer.run(main)
