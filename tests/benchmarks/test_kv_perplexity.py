"""The script of the perplexity record: what was trained comes off again, costs are paired, the page says the record."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.reference.smol.parts import tiny_decoder
from vlm_eff.eval.perplexity import TextScore
from vlm_eff.eval.record import read_record
from vlm_eff.reference.smol import low_rank

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("kv_perplexity", ROOT / "benchmarks" / "kv_perplexity.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_was_trained_comes_off_again(script, tmp_path, monkeypatch) -> None:
    trained, merged, plain = (tiny_decoder(40).model for _ in range(3))
    for factor in low_rank.insert(trained, 2):
        torch.nn.init.normal_(factor, std=0.3)
    factors = low_rank.changes(trained)
    save_file({name: value.contiguous() for name, value in factors.items()}, tmp_path / script.CHANGES)
    monkeypatch.setattr(script, "SHIPPED", tmp_path)
    low_rank.merge(merged, factors)
    name = "layers.1.mlp.up_proj.weight"
    assert (merged.state_dict()[name] - plain.state_dict()[name]).abs().max() > 0.1
    script.take_off_changes(merged)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(merged.state_dict()[name], value, rtol=1e-5, atol=1e-5)


def test_costs_are_paired_by_window(script) -> None:
    scores = {
        "bare": TextScore(2.0, (1.0, 3.0), 8, 1.0, 1.0, 1.0),
        "kivi": TextScore(2.5, (1.2, 3.2), 8, 0.9, 0.25, 1.0),
    }
    bare, kivi = script.rows(scores)
    assert (kivi["extra_nats"], kivi["standard_error"]) == (0.2, 0.0)
    assert (bare["extra_nats"], kivi["bytes_ratio"], kivi["tokens"]) == (0.0, 0.25, 8)


def test_the_page_says_what_the_record_says(script) -> None:
    record = read_record(ROOT / script.RESULT)
    page = (ROOT / "docs" / "smol.md").read_text(encoding="utf-8")
    assert [row["policy"] for row in record.result[2:]] == list(script.SPECS)
    assert f"{record.n} predictions" in page and f"perplexity of {record.result[0]['perplexity']:.2f}" in page
    for row in record.result[2:]:
        more = f"{row['extra_nats']:+.3f} ± {row['standard_error']:.3f}"
        assert f"| `{row['policy']}` | {row['bytes_ratio']:.1%} | {row['perplexity']:.2f} | {more} |" in page
