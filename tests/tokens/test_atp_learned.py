"""Learned thresholds: what is kept, how the soft mask becomes a hard one, what learns, what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.contracts import kit
from tests.oracle import attention_rows
from tests.tiny import tiny_inputs, tiny_vlm, visual_layout
from vlm_eff import attach
from vlm_eff.core.config import from_dict
from vlm_eff.core.errors import CapabilityError, ConfigError
from vlm_eff.tokens import atp_learned, pyramiddrop
from vlm_eff.tokens.thresholds import standard

LAYERS = (1, 3)
TEST = atp_learned(layers=LAYERS, stride=4, untrained=True)


def scores(model: Any, inputs: Any, layer: int) -> list[Tensor]:
    """Of each row the standardised score of its candidates, from full eager attention."""
    weights = attention_rows(model, inputs, layer).mean(1)
    made = []
    for index, mask in enumerate(kit.candidates(inputs)):
        visual = mask.nonzero()[:, 0]
        words = torch.arange(int(visual[-1]) + 1, mask.shape[0])
        words = words[inputs["input_ids"][index, words] > 9]
        parts = []
        for rows in (visual, words):
            looks = (rows[:, None] >= visual[None, :]).sum(0).clamp(min=1)
            parts.append(weights[index][rows][:, visual].sum(0) / looks)
        logs = ((parts[0] + parts[1]) / 2).log()
        made.append((logs - logs.mean()) / logs.std(correction=0))
    return made


@pytest.mark.parametrize("shift", [0.0, 0.4])
def test_what_scores_above_the_threshold_stays_and_the_grid_with_it(shift: float) -> None:
    model, inputs = kit.model_of("llava"), tiny_inputs("llava", (1,))
    with attach(model, atp_learned(layers=(2,), stride=4, untrained=True)) as handle:
        with torch.no_grad():
            handle.weights["atp_learned"].bias.fill_(shift)
        kit.forward(model, inputs)
    want = scores(model, inputs, 1)[0] > shift
    for column, cell in enumerate(visual_layout("llava", inputs)[0]):
        want[column] |= cell["y"] % 4 == 0 and cell["x"] % 4 == 0
    assert torch.equal(handle.visual(2)[0].kept, want)
    assert 0 < int(want.sum()) < len(want)


def test_a_higher_threshold_never_keeps_more() -> None:
    model, inputs = kit.model_of("llava"), tiny_inputs("llava", (1, 2))
    counts = []
    with attach(model, TEST) as handle:
        for bias in (-3.0, -1.0, 0.0, 0.5, 1.0, 9.0):
            with torch.no_grad():
                handle.weights["atp_learned"].bias.fill_(bias)
            kit.forward(model, inputs)
            counts.append([int(row.kept.sum()) for row in handle.visual(LAYERS[0])])
            for row in handle.visual(5):
                assert bool(row.kept[(row.y % 4 == 0) & (row.x % 4 == 0)].all())
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[-1]


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("pad", ["left", "right"])
@pytest.mark.parametrize("family", ["llava", "qwen3_vl", "gemma3"])
def test_the_soft_mask_becomes_the_hard_drop(family: str, pad: str, attn: str) -> None:
    """As the temperature goes to 0 the run with soft columns meets the run without the tokens."""
    model, inputs = tiny_vlm(family, attn=attn), tiny_inputs(family, (1, 2, 0), pad=pad)  # type: ignore[arg-type]
    hard = kit.attached(model, inputs, TEST)
    left = kit.survivors(hard.handle, inputs)[-1] & kit.real(inputs)
    off = []
    for temperature in (1.0, 1e-5):
        plugin = atp_learned(layers=LAYERS, stride=4, temperature=temperature)
        with attach(model.train(), plugin), torch.no_grad():
            soft = model(**inputs, use_cache=False).logits
        model.eval()
        off.append(float((soft - hard.logits)[left].abs().max()))
    assert off[0] > 100 * off[1]
    kit.same(soft[left], hard.logits[left])
    kit.differs(hard.logits[left], kit.bare(model, inputs)[left])


def test_only_the_predictor_learns_and_the_penalty_steers_the_count() -> None:
    model, inputs = tiny_vlm("llava").requires_grad_(False).train(), tiny_inputs("llava", (1, 2))
    labels = torch.full_like(inputs["input_ids"], -100)
    labels[:, -3:] = inputs["input_ids"][:, -3:]
    with attach(model, atp_learned(keep_ratio=0.3, layers=(2,), stride=5)) as handle:
        loss = model(**inputs, labels=labels, use_cache=False).loss
        loss.backward()
        assert all(bool((p.grad.abs() > 0).any()) for p in handle.parameters())
        assert all(parameter.grad is None for parameter in model.parameters())
        optimiser = torch.optim.Adam(handle.parameters(), lr=0.1)
        for _ in range(40):
            model(**inputs, use_cache=False)
            penalty = handle.penalty()
            assert penalty is not None
            optimiser.zero_grad()
            penalty.backward()
            optimiser.step()
        model.eval()
        kit.forward(model, inputs)
        assert handle.penalty() is None
        for row in handle.visual(2):
            assert float(row.kept.float().mean()) == pytest.approx(0.3, abs=0.12)


def test_weights_come_back_alone(tmp_path: Path) -> None:
    model, inputs, path = kit.model_of("llava"), tiny_inputs("llava", (1, 2)), tmp_path / "atp.safetensors"
    with attach(model, TEST) as handle:
        with torch.no_grad():
            handle.weights["atp_learned"].bias.copy_(torch.tensor([0.3, -0.2]))
            handle.weights["atp_learned"].weight.fill_(0.05)
        want = kit.bare(model, inputs)
        handle.weights["atp_learned"].save(path)
    loaded = atp_learned(layers=LAYERS, stride=4, weights=str(path))
    assert torch.equal(kit.attached(model, inputs, loaded).logits, want)
    assert from_dict(loaded.to_dict()) == loaded
    with pytest.raises(ConfigError, match="layers 1 3 instead of 2 3"):
        attach(model, atp_learned(layers=(2, 3), weights=str(path)))


def test_what_cannot_work_is_refused() -> None:
    model, inputs = kit.model_of("llava"), tiny_inputs("llava", (1,))
    with pytest.raises(CapabilityError, match="atp_learned without weights"):
        attach(model, atp_learned())
    with pytest.raises(ConfigError, match="temperature"):
        atp_learned(temperature=0)
    with pytest.raises(CapabilityError, match="layer -1"):
        attach(model, atp_learned(layers=(0, 2), untrained=True))
    training = tiny_vlm("llava").train()
    with pytest.raises(CapabilityError, match="pyramiddrop cannot be trained"):
        attach(training, pyramiddrop())
    with attach(training, atp_learned(layers=(2,))):
        cache = training(**inputs, use_cache=True).past_key_values
        more = {name: value for name, value in inputs.items() if name != "attention_mask"}
        with pytest.raises(CapabilityError, match="soft dropping on a filled cache"):
            training(**more, past_key_values=cache)


def test_scores_are_standard_over_what_is_there() -> None:
    share = torch.tensor([[1.0, 1.0, 0.0, 1.0]])
    made = standard(torch.tensor([[1.0, 2.0, 50.0, 4.0]]), share)
    assert made[0, [0, 1, 3]].tolist() == pytest.approx([-(1.5**0.5), 0.0, 1.5**0.5], abs=1e-5)
