"""The script trains what is asked at test time, and resuming changes nothing."""

from __future__ import annotations

import sys

import pytest
import torch

from vlm_eff.reference import dense, naming
from vlm_eff.reference.batches import PREFIX_LENGTH, BatchMaker
from vlm_eff.reference.export import export_model
from vlm_eff.reference.loading import load_folder
from vlm_eff.reference.model import build_model, preset
from vlm_eff.reference.pointing import pointing_loss
from vlm_eff.reference.scenes import make_scene
from vlm_eff.reference.schedule import Schedule
from vlm_eff.reference.trainer import Trainer
from vlm_eff.reference.vocabulary import build_processor

STEPS = 4


def tiny_trainer() -> Trainer:
    processor = build_processor()
    model = build_model(preset("tiny"), processor, seed=3)
    maker = BatchMaker(processor, batch_size=2, seed=3, easy_share=0.0)
    return Trainer(model, maker, Schedule(None, STEPS, 3e-3, tower_share=0.25), torch.device("cpu"))


def weights(trainer: Trainer) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in [*trainer.model.parameters(), *trainer.average]])


def test_resuming_equals_going_through(tmp_path):
    whole = tiny_trainer()
    while not whole.done:
        whole.train_step()
    first = tiny_trainer()
    for _ in range(2):
        first.train_step()
    first.save(tmp_path / "checkpoint.pt")
    second = tiny_trainer()
    second.load(tmp_path / "checkpoint.pt")
    assert second.step == 2
    while not second.done:
        second.train_step()
    assert torch.equal(weights(whole), weights(second))
    # and training does something
    assert not torch.equal(weights(tiny_trainer()), weights(second))


def test_a_packed_question_is_answered_as_if_asked_alone():
    trainer = tiny_trainer()
    trainer.model.eval()
    batch = trainer.maker.batch(0, 4)
    with torch.no_grad():
        features = trainer.model.model.vision_tower(pixel_values=batch.pixels).last_hidden_state
        packed, _, _ = trainer._answers(trainer.model.model.multi_modal_projector(features[:, 1:]), batch)
    due = (batch.targets >= 0).nonzero().tolist()
    for number, (row, place) in list(enumerate(due))[::9]:
        turn = (batch.turns[row] == batch.turns[row, place]) & (torch.arange(batch.turns.shape[1]) <= place)
        ids = torch.cat([batch.tokens[row, :PREFIX_LENGTH], batch.tokens[row, turn]])[None]
        with torch.no_grad():
            alone = trainer.model(input_ids=ids, pixel_values=batch.pixels[row : row + 1]).logits[0, -1]
        torch.testing.assert_close(packed[number], alone, atol=1e-4, rtol=1e-4)


def test_export_loads_with_all_keys(tmp_path):
    trainer = tiny_trainer()
    folder = export_model(trainer.averaged_model(), build_processor(), tmp_path / "model")
    model, processor = load_folder(folder)
    assert model.dtype == torch.float32
    assert processor.patch_size == 8


def test_patch_targets_lie_where_the_objects_are():
    for seed in range(100):
        scene = make_scene(seed, "test")
        target = dense.patch_targets(scene).reshape(len(dense.HEADS), dense.SIDE, dense.SIDE)
        assert int((target[6] == 1).sum()) == len(scene.objects)
        for item in scene.objects:
            left, top, right, bottom = item.box
            row, column = (top + bottom) // 16, (left + right) // 16
            assert dense.HEADS["colour"] == 9
            assert target[1, row, column] > 0


def test_visual_tokens_are_named_by_what_they_show():
    groups = list(naming.GROUPS)
    for seed in range(50):
        scene = make_scene(seed, "test")
        target = naming.naming_targets(scene).reshape(len(groups), dense.SIDE, dense.SIDE)
        for item in (*scene.objects, *(text for text in (scene.word, scene.digit) if text is not None)):
            left, top, right, bottom = item.box
            names = {
                group: naming.GROUPS[group][index]
                for group, index in zip(groups, target[:, (top + bottom) // 16, (left + right) // 16], strict=True)
                if index != dense.IGNORE
            }
            assert f"{names['row']} {names['column']}" == item.cell
            if names["kind"] == "object":
                assert (names["shape"], names["colour"], names["size"]) == (item.shape, item.colour, item.size)
            else:
                assert names[names["kind"]] == item.text


def test_pointing_places_are_the_cue_and_the_named_objects():
    maker = tiny_trainer().maker
    batch = maker.batch(0, 4)
    words = maker.tokenizer.convert_ids_to_tokens
    seen = set()
    for (row, place), patches in zip(batch.pointing_places.tolist(), batch.pointing_target, strict=True):
        token, after = words(batch.tokens[row, place : place + 2].tolist())
        assert patches.any()
        if batch.targets[row, place] >= 0:
            assert token == ":" or after in ("left", "center", "right", "</s>")
        else:
            assert after in ("left", "right", "above", "below", "?")
        seen.add(after)
    assert len(seen) > 5


def test_looking_at_the_right_patches_costs_less():
    trainer = tiny_trainer()
    layer = trainer.model.model.language_model.layers[1]
    hidden = torch.randn(1, PREFIX_LENGTH + 5, 32)
    positions = torch.arange(PREFIX_LENGTH + 5)[None]
    rotary = trainer.model.model.language_model.rotary_emb(hidden, positions)
    places = torch.tensor([[0, PREFIX_LENGTH + 2]])
    everywhere = torch.ones(1, 144, dtype=torch.bool)
    somewhere = everywhere.clone()
    somewhere[:, 50:] = False
    losses = [pointing_loss(layer, hidden, rotary, places, mask, PREFIX_LENGTH) for mask in (everywhere, somewhere)]
    assert 0 < losses[0] < losses[1]


def test_missing_folder_and_checkpoint_are_said(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        load_folder(tmp_path)
    with pytest.raises(FileNotFoundError, match="--resume"):
        tiny_trainer().load(tmp_path / "checkpoint.pt")


def test_missing_easy_vqa_names_the_extra(monkeypatch):
    from vlm_eff.reference.easy_vqa import load_easy_vqa

    monkeypatch.setitem(sys.modules, "easy_vqa", None)
    with pytest.raises(ImportError, match=r"vlm_eff\[reference\]"):
        load_easy_vqa("test")
    with pytest.raises(ValueError, match="train, test"):
        load_easy_vqa("validation")
