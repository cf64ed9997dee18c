"""Training of the small diffusion models: it learns, goes on from a checkpoint exactly, and writes a true card."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from vlm_eff.reference.diffusion.export import export
from vlm_eff.reference.diffusion.noise import noise_levels
from vlm_eff.reference.diffusion.pipelines import load_dit_pipeline, load_unet_pipeline
from vlm_eff.reference.diffusion.train import build_denoiser, train
from vlm_eff.reference.diffusion.trainer import DiffusionTrainer, build_optimisers, matrices_of
from vlm_eff.reference.diffusion.weights import card_of
from vlm_eff.reference.schedule import Schedule

OPTIMISERS = {"unet": "adamw", "dit": "muon"}


def trainer_of(name: str, steps: int = 4, batch_size: int = 4) -> DiffusionTrainer:
    schedule = Schedule(None, steps, 3e-3, tower_share=0.0)
    return DiffusionTrainer(build_denoiser(name), schedule, batch_size, seed=0, optimiser=OPTIMISERS[name])


@pytest.mark.parametrize("name", sorted(OPTIMISERS))
def test_a_checkpoint_goes_on_exactly(name: str, tmp_path: Path) -> None:
    straight, stopped, resumed = trainer_of(name), trainer_of(name), trainer_of(name)
    while not straight.done:
        straight.train_step()
    stopped.train_step()
    stopped.save(tmp_path / "checkpoint.pt")
    resumed.load(tmp_path / "checkpoint.pt")
    while not resumed.done:
        resumed.train_step()
    assert resumed.step == straight.step == 4 and resumed.pictures == 16
    pairs = zip(straight.denoiser.parameters(), resumed.denoiser.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    assert all(torch.equal(one, other) for one, other in zip(straight.average, resumed.average, strict=True))
    # saboteur: a run that starts afresh ends elsewhere
    fresh = trainer_of(name)
    fresh.step = 1
    while not fresh.done:
        fresh.train_step()
    assert not torch.equal(fresh.average[0], straight.average[0])


def test_the_loss_falls(tmp_path: Path) -> None:
    trainer = trainer_of("dit", steps=200, batch_size=8)
    losses = [trainer.train_step()["loss"] for _ in range(40)]
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


def test_a_check_leaves_the_run_alone() -> None:
    trainer = trainer_of("unet")
    trainer.train_step()
    before = [parameter.clone() for parameter in trainer.denoiser.parameters()]
    assert trainer.check() == trainer.check()
    assert all(torch.equal(*pair) for pair in zip(before, trainer.denoiser.parameters(), strict=True))


def test_an_untrained_dit_predicts_nothing_yet() -> None:
    # zero modulation and a zero last layer: every block starts as the identity
    predicted = build_denoiser("dit")(torch.randn(2, 3, 16, 16), torch.tensor([0, 999]), torch.tensor([0, 10]))
    assert predicted.abs().max() == 0


def test_the_noise_is_that_of_the_pipelines() -> None:
    signal, noise = noise_levels()
    assert torch.allclose(signal**2 + noise**2, torch.ones(1000), atol=1e-6)
    assert signal[0] > 0.999 and noise[-1] > 0.999
    assert (signal.diff() < 0).all()


def test_muon_gets_the_matrices_of_blocks_only() -> None:
    names = matrices_of(build_denoiser("dit"))
    assert names and all("transformer_blocks." in name and "weight" in name for name in names)
    assert len(build_optimisers(build_denoiser("dit"), 1e-3, "muon")) == 2
    assert len(build_optimisers(build_denoiser("unet"), 1e-3, "adamw")) == 1
    with pytest.raises(ValueError, match="accepted are muon, adamw"):
        build_optimisers(build_denoiser("unet"), 1e-3, "sgd")


@pytest.mark.parametrize("name", sorted(OPTIMISERS))
def test_a_run_is_shipped_with_its_card(name: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(name, run, steps=2, batch_size=2, optimiser=OPTIMISERS[name])
    train(name, run, steps=3, batch_size=2, optimiser=OPTIMISERS[name], resume=True)
    weights = tmp_path / "model.safetensors"
    export(run, weights)
    card = json.loads(card_of(weights).read_text(encoding="utf-8"))
    assert [start["started_at_step"] for start in card["training"]["starts"]] == [0, 2]
    assert card["training"]["steps"] == 3 and card["training"]["pictures_seen"] == 6
    pipeline = load_unet_pipeline(weights) if name == "unet" else load_dit_pipeline(weights)
    network = pipeline.unet if name == "unet" else pipeline.transformer
    trained = torch.load(run / "checkpoint.pt", weights_only=True)["average"]
    kept = dict(zip(dict(build_denoiser(name).named_parameters()), trained, strict=True))
    for key, value in network.state_dict().items():
        if "class_embedder" not in key and f"model.{key}" in kept:
            assert torch.equal(value, kept[f"model.{key}"].half().float()), key
