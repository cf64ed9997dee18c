"""Registers of the bundled model: trained through the hooks, resumed bit for bit, shipped and loadable."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from vlm_eff import attach
from vlm_eff.core.errors import ConfigError
from vlm_eff.reference import REGISTERS, load_reference, registers_file
from vlm_eff.reference.evaluate import evaluate_reference, scene_samples
from vlm_eff.reference.train_registers import RegisterTrainer, train_registers
from vlm_eff.tokens import victor


def trained(output: Path, steps: int, **more: Any) -> Tensor:
    """The weights of a short run."""
    train_registers(
        output, registers=6, layer=2, init="pooled", minutes=None, steps=steps, batch_size=1, learning_rate=0.1,
        easy_share=0.0, seed=1, checkpoint_minutes=1.0, **{"resume": False} | more,
    )  # fmt: skip
    return load_file(output / "registers.safetensors")["registers"]


def test_a_run_is_repeatable_and_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = trained(tmp_path / "whole", 4)
    calls = iter([False, False, True])
    with monkeypatch.context() as patch:
        # stopped after two of four steps
        patch.setattr(RegisterTrainer, "done", property(lambda self: next(calls)))
        assert not torch.equal(trained(tmp_path / "halves", 4), whole)
    assert torch.equal(trained(tmp_path / "halves", 4, resume=True), whole)


@pytest.mark.parametrize(("registers", "layer"), REGISTERS)
def test_bundled_registers_know_what_is_in_the_picture(registers: int, layer: int) -> None:
    model, processor = load_reference()
    samples = scene_samples("test", 6)
    path, init = str(registers_file(registers, layer)), REGISTERS[registers, layer]
    made = victor(registers, layer, weights=path, init=init)  # type: ignore[arg-type]
    blank = victor(registers, layer, init="normal", untrained=True)
    with attach(model, made) as handle:
        right = evaluate_reference(model, processor, samples)["all"]
        report = handle.stats().last
    assert report is not None
    assert report.n_eq == pytest.approx((144 * layer + registers * 8) / 8)
    with attach(model, blank):
        assert evaluate_reference(model, processor, samples)["all"] + 0.2 < right


def test_registers_of_other_numbers_are_refused() -> None:
    with pytest.raises(FileNotFoundError, match="18 registers at layer 3"):
        registers_file(8, 3)
    model, _ = load_reference()
    with pytest.raises(ConfigError, match="layer 3 instead of 2"):
        attach(model, victor(18, 2, weights=str(registers_file(18, 3)), init="pooled"))
