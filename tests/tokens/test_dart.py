"""DART: its set from the bare model's keys and hidden states, written down as loops; copies of pivots go."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.contracts import kit
from tests.contracts.checks import image_tokens
from tests.oracle import decoder_layers
from tests.tiny import TinyInputs, tiny_inputs
from tests.tokens.test_content import layer_inputs
from vlm_eff.core.errors import ConfigError
from vlm_eff.tokens import dart


def key_norms(model: object, inputs: TinyInputs, layer: int) -> Tensor:
    """L1 norm of the projected keys [B, S] before any rotation; LLaMA has no key norm."""
    seen: list[Tensor] = []
    hook = decoder_layers(model)[layer].self_attn.k_proj.register_forward_hook(  # type: ignore[arg-type]
        lambda module, args, output: seen.append(output)
    )
    kit.forward(model, inputs)
    hook.remove()
    return seen[0].double().abs().sum(-1)


def expected(
    norms: dict[int, float], words: dict[int, float], hidden: Tensor, count: int, pivots: int, text: int, rule: str
) -> set[int]:
    """The published procedure for one row: slots of the tokens that stay."""

    def top(scores: dict[int, float], many: int) -> list[int]:
        return sorted(scores, key=lambda at: (-scores[at], at))[:many]

    def like(a: int, b: int) -> float:
        return float(torch.cosine_similarity(hidden[a], hidden[b], dim=0))

    kept = set(top(norms, min(pivots, count)))
    chosen = top(norms, pivots) + top(words, text)
    left = count - len(kept)
    if rule == "nearest":
        nearest = {at: -max(like(at, pivot) for pivot in chosen) for at in norms if at not in kept}
        return kept | set(top(nearest, left))
    for number, pivot in enumerate(chosen):
        share = left // len(chosen) + (number < left % len(chosen))
        kept |= set(top({at: -like(at, pivot) for at in norms if at not in kept}, share))
    return kept


@pytest.mark.parametrize("rule", ["rounds", "nearest"])
@pytest.mark.parametrize("pad", ["left", "right"])
@pytest.mark.parametrize(("count", "pivots", "words"), [(12, 4, 4), (9, 2, 3), (3, 4, 4), (5, 1, 0)])
def test_the_set_is_the_published_one(count: int, pivots: int, words: int, pad: str, rule: str) -> None:
    model, inputs = kit.model_of("llava"), tiny_inputs("llava", (1, 2, 0), pad=pad)  # type: ignore[arg-type]
    plugin = dart(layer=2, keep_count=count, pivots=pivots, text_pivots=words, rule=rule)  # type: ignore[arg-type]
    left = kit.survivors(kit.attached(model, inputs, plugin).handle, inputs)[2]
    norms, hidden = key_norms(model, inputs, 1), layer_inputs(model, inputs)[2].double()
    text = model.config.get_text_config()
    marks = torch.isin(inputs["input_ids"], torch.tensor([text.bos_token_id, text.eos_token_id]))
    candidates, words_only = image_tokens("llava", inputs), kit.real(inputs) & ~marks
    for row, mask in enumerate(candidates):
        images, texts = (
            {at: float(norms[row, at]) for at in chosen.nonzero()[:, 0].tolist()}
            for chosen in (mask, words_only[row] & ~mask)
        )
        got = set((left[row] & mask).nonzero()[:, 0].tolist())
        assert got == (expected(images, texts, hidden[row], count, pivots, words, rule) if images else set())
        assert len(got) == min(count, len(images))


@pytest.mark.parametrize("family", ["llava_next", "qwen3_vl", "gemma3", "idefics3"])
def test_the_count_is_exact(family: str) -> None:
    model, inputs = kit.model_of(family), tiny_inputs(family, (1, 2))
    for count in (1, 4, 5, 11):
        run = kit.attached(model, inputs, dart(layer=1, keep_count=count))
        left = kit.survivors(run.handle, inputs)[1] & image_tokens(family, inputs)
        assert left.sum(1).tolist() == [count, count]


def test_copies_of_a_pivot_go_first() -> None:
    """Half of the tokens are written over by the first pivot: with "nearest" not one copy is left."""
    model, inputs = kit.model_of("llava"), tiny_inputs("llava", (1,))
    places = image_tokens("llava", inputs)[0].nonzero()[:, 0]
    norms = key_norms(model, inputs, 1)[0]
    pivot = int(places[norms[places].argmax()])
    copies = [at for at in places.tolist() if at != pivot][::2]

    def write(_: object, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        made = output.clone()
        made[:, copies] = made[:, [pivot]] * 0.5
        return made

    hook = decoder_layers(model)[1].register_forward_hook(write)
    try:
        count = len(places) - len(copies)
        run = kit.attached(model, inputs, dart(layer=2, keep_count=count, pivots=1, text_pivots=0, rule="nearest"))
        one = kit.attached(model, inputs, dart(layer=2, keep_count=count, pivots=1, text_pivots=0))
    finally:
        hook.remove()
    for handle in (run.handle, one.handle):
        assert not set(copies) & set(handle.survivors(2)[0].tolist())


def test_only_the_faithful_pivots_see_the_rotation() -> None:
    """Shuffled positions move keys with their rotation, and with them the published choice; ours they do not move."""
    model, inputs = kit.model_of("llava"), tiny_inputs("llava", (1,))
    length = inputs["input_ids"].shape[1]
    shuffled = torch.randperm(length, generator=torch.Generator().manual_seed(1))[None]

    def kept(faithful: bool) -> list[list[int]]:
        plugin = dart(layer=1, keep_count=4, faithful=faithful)
        return [
            kit.attached(model, inputs, plugin, position_ids=positions).handle.survivors(1)[0].tolist()
            for positions in (torch.arange(length)[None], shuffled)
        ]

    assert kept(False)[0] == kept(False)[1]
    assert kept(True)[0] != kept(True)[1]


def test_what_dart_refuses() -> None:
    with pytest.raises(ConfigError, match="pivots=0"):
        dart(pivots=0)
    with pytest.raises(ConfigError, match="text_pivots=-1"):
        dart(text_pivots=-1)
    with pytest.raises(ConfigError, match="'rounds', 'nearest'"):
        dart(rule="all")  # type: ignore[arg-type]
