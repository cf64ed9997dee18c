"""A method of your own: a score of a few lines, composed with parts that are there."""

from dataclasses import dataclass

from torch import Tensor

from vlm_eff import attach
from vlm_eff.core.config import part
from vlm_eff.importance.keep import Keep
from vlm_eff.models.view import View
from vlm_eff.reference import load_reference
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


loudest = TokenReducer("loudest", (Stage(Keep(ratio=0.25), layer=3, score=HiddenNorm()),))
model, processor = load_reference()
text = "user: <image> what word is written? assistant:"
inputs = processor(images=render(make_scene(3, "test")), text=text, return_tensors="pt")
with attach(model, loudest) as handle:
    model.generate(**inputs, max_new_tokens=4, do_sample=False)
print(loudest)
print(handle.stats())
