"""Perplexity out of a compressed cache: a full one gives that of one forward pass, and rounding costs what it costs."""

import math

import pytest
import torch

from tests.tiny import tiny_vlm
from vlm_eff.core.errors import InputError
from vlm_eff.eval import perplexity
from vlm_eff.eval.perplexity import perplexities, text_windows
from vlm_eff.kvcache import kivi, random_evict, streaming_llm

PREFIX, LENGTH = 24, 36


@pytest.fixture(scope="module")
def model():
    return tiny_vlm("llava")


@pytest.fixture(scope="module")
def windows() -> torch.Tensor:
    return torch.randint(10, 60, (5, LENGTH), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def scores(model, windows):
    policies = {
        "all": random_evict(keep_ratio=1.0),
        "two bits": kivi(bits=2, residual=8, group=8),
        "few": streaming_llm(keep_ratio=0.25),
    }
    return perplexities(model, windows, PREFIX, policies, batch_size=2)


def test_a_full_cache_gives_the_perplexity_of_one_forward_pass(model, windows, scores) -> None:
    with torch.no_grad():
        said = model(input_ids=windows).logits.log_softmax(-1)
    nats = -said[:, PREFIX:-1].gather(2, windows[:, PREFIX + 1 :, None])[..., 0]
    for label in ("bare", "all"):
        assert scores[label].perplexity == pytest.approx(math.exp(nats.mean()), rel=1e-4)
        assert scores[label].surprise == pytest.approx(nats.mean(1).tolist(), rel=1e-4)
        assert scores[label].agrees == 1.0 and scores[label].tokens == 5 * (LENGTH - PREFIX - 1)


def test_each_policy_compresses_and_none_meets_another(model, windows, scores) -> None:
    assert scores["two bits"].bytes_ratio < 0.4 and scores["two bits"].entries_ratio == 1.0
    assert scores["few"].entries_ratio == pytest.approx(0.25, abs=0.02)
    for label in ("two bits", "few"):
        assert scores[label].perplexity != pytest.approx(scores["bare"].perplexity, rel=1e-5)
    alone = perplexities(model, windows, PREFIX, {"few": streaming_llm(keep_ratio=0.25)}, batch_size=5)
    assert alone["few"].surprise == pytest.approx(scores["few"].surprise, rel=1e-4)


def test_a_cache_that_is_not_copied_is_noticed(model, windows, scores, monkeypatch) -> None:
    monkeypatch.setattr(perplexity, "copied_cache", lambda cache: cache)
    spoilt = perplexities(model, windows, PREFIX, {"few": streaming_llm(keep_ratio=0.25)}, batch_size=5)
    assert spoilt["few"].surprise != pytest.approx(scores["few"].surprise, rel=1e-4)


def test_windows_are_spread_and_do_not_overlap() -> None:
    assert text_windows(torch.arange(10), 3, 3).tolist() == [[0, 1, 2], [3, 4, 5], [7, 8, 9]]
    assert text_windows(torch.arange(10), 4, 1).tolist() == [[0, 1, 2, 3]]
    for length, count in ((4, 3), (0, 1), (1, 0)):
        with pytest.raises(InputError, match="text of 10"):
            text_windows(torch.arange(10), length, count)


def test_something_must_be_left_to_predict(model, windows) -> None:
    for prefix, policies in ((0, {}), (LENGTH - 1, {}), (PREFIX, {"bare": random_evict(keep_ratio=0.5)})):
        with pytest.raises(InputError, match="two tokens or more"):
            perplexities(model, windows, prefix, policies)
