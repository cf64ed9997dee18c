"""CDPruner keeps what its definition says, from the embeddings that enter the language model."""

import pytest
import torch

from tests.contracts import checks, kit
from tests.contracts.checks_sets import entry_embeds
from tests.importance.test_greedy import kernel
from tests.tiny import ids, tiny_inputs
from tests.tokens.hand_made import hand_view
from vlm_eff.core.errors import ConfigError
from vlm_eff.models.rows import Rows
from vlm_eff.tokens import cdpruner
from vlm_eff.tokens.scores_text import TextRelevance, spread


def by_hand(x: torch.Tensor, quality: torch.Tensor, count: int) -> list[int]:
    """Greedy choice of the largest determinant, by determinants."""
    whole, made = kernel(x, quality), []  # type: ignore[var-annotated]
    for _ in range(count):
        left = [j for j in range(len(x)) if j not in made]
        # equal ones are told apart by their index, not by the last digit
        made.append(max(left, key=lambda j: round(float(whole[[*made, j]][:, [*made, j]].det()), 10)))
    return sorted(made)


@pytest.mark.parametrize("pad", ["left", "right"])
@pytest.mark.parametrize(("theta", "sign"), [(None, -1), (0.5, -1), (0.9, 1), (0, -1)])
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_it_keeps_its_definition(family: str, theta: float | None, sign: int, pad: str) -> None:
    model, inputs = kit.model_of(family), tiny_inputs(family, (1, 2, 0), pad=pad)  # type: ignore[arg-type]
    plugin = cdpruner(keep_count=6, relevance_weight=theta, relevance="negative" if sign < 0 else "positive")
    run = kit.attached(model, inputs, plugin)
    candidates, embeds = checks.image_tokens(family, inputs), entry_embeds(model, inputs).double()
    kept = kit.survivors(run.handle, inputs)[0] & candidates
    unit = embeds / embeds.norm(dim=-1, keepdim=True)
    for index in range(2):
        places = candidates[index].nonzero()[:, 0]
        token = inputs["input_ids"][index]
        word = (token >= ids.FIRST_TEXT) & (token <= ids.LAST_TEXT) & (torch.arange(len(token)) > places[-1])
        assert bool(word.any())
        alike = sign * (unit[index, places] @ unit[index, word].T).mean(1)
        relevance = (alike - alike.min()) / (alike.max() - alike.min())
        quality = relevance + 1e-6 if theta is None else (relevance * theta / (2 - 2 * theta)).exp()
        assert kept[index].nonzero()[:, 0].tolist() == places[by_hand(embeds[index, places], quality, 6)].tolist()
    assert not kept[2].any()


def test_the_first_pick_is_the_most_relevant() -> None:
    model, inputs = kit.model_of("llava"), tiny_inputs("llava", (1,))
    one, two = (
        kit.survivors(kit.attached(model, inputs, cdpruner(keep_count=1, relevance=sign)).handle, inputs)[0]
        for sign in ("negative", "positive")
    )
    assert not torch.equal(one, two)


def test_without_a_question_all_tokens_are_equally_relevant() -> None:
    nobody = Rows(torch.zeros(2, 1, dtype=torch.long), torch.tensor([[True], [False]]))
    for words in (nobody, Rows(torch.zeros(2, 0, dtype=torch.long), torch.zeros(2, 0, dtype=torch.bool))):
        view = hand_view([(5,), (4,)])
        object.__setattr__(view, "prompt", type("Words", (), {"text": lambda self, where, words=words: words})())
        object.__setattr__(view, "survivors", type("All", (), {"physical": lambda self, slot: slot})())
        made = TextRelevance()(view)
        assert made[1].tolist() == [1, 1, 1, 1, 0]


def test_a_row_is_spread_by_itself() -> None:
    values = torch.tensor([[1.0, 3, 2, 99], [5, 5, 5, 5]])
    valid = torch.tensor([[True, True, True, False], [True] * 4])
    made = spread(values, valid)
    assert made[0, :3].tolist() == [0, 1, 0.5]
    assert made[1].tolist() == [1] * 4


@pytest.mark.parametrize("weight", [1, -0.1, True, "half"])
def test_what_is_no_weight_is_refused(weight: object) -> None:
    with pytest.raises(ConfigError, match="relevance_weight="):
        cdpruner(relevance_weight=weight)  # type: ignore[arg-type]
