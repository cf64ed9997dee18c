"""What must not be compared is refused, and the refusal names what differs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.eval.stats.builder import SETTINGS, TASK, downsized, header, run, sample, samples
from vlm_eff.core.errors import InputError
from vlm_eff.eval.runs.folder import Sample
from vlm_eff.eval.stats import comparable as comparable_module
from vlm_eff.eval.stats.comparable import comparable, place_differences

N = 6
SCORES = [1.0] * N
FILM = {"video": "a.mp4", "digest": "d", "convention": "linspace", "indices": [0, 4, 8], "partial": False}


def lines(**changed: Any) -> list[Sample]:
    """Samples of which one is changed."""
    made = samples(SCORES)
    made[2] = replace(made[2], **changed)
    return made


def films(**changed: Any) -> list[Sample]:
    return [replace(one, media=[FILM | changed]) for one in samples(SCORES)]


SAMPLE_CASES = {
    "prompt": (lines(), lines(prompt="is it blue?"), "prompts differ for 'q2'"),
    "gold": (lines(), lines(gold={"answer": "no"}), "gold answers differ for 'q2'"),
    "cluster": (lines(), lines(cluster="x"), "clusters differ"),
    "group": (lines(), lines(groups={}), "groups differ"),
    "pixels": (lines(), lines(media=[{"picture": "other", "size": [64, 48]}]), "pictures differ for 'q2'"),
    "size": (lines(), lines(media=[{"picture": "digest2", "size": [32, 24]}]), "pictures differ for 'q2'"),
    "pictures": (lines(), lines(media=[]), "number and kind of pictures"),
    "kind": (lines(), lines(media=[FILM]), "number and kind of pictures"),
    "indices": (films(), films(indices=[0, 3, 6]), "frames differ for 'q0', 'q1', 'q2' and 3 more"),
    "convention": (films(), films(convention="midpoints"), "frames differ"),
    "partial": (films(), films(partial=True), "frames differ"),
    "frames": (films(), films(digest="e"), "pixels of videos differ"),
    "ids": (
        samples(SCORES),
        [sample(n + 4, 1.0) for n in range(N)],
        "4 items of .* are not in .*'q0', 'q1', 'q2' and 1",
    ),
}
HEADER_CASES: dict[str, tuple[dict[str, Any], str]] = {
    "model": ({"model": "other"}, "models differ: tiny and other"),
    "version": ({"task": TASK | {"items": N, "version": "2"}}, "task's version differs: '1' and '2'"),
    "metric": ({"task": TASK | {"items": N, "metric": "anls"}}, "task's metric differs"),
    "length": ({"task": TASK | {"items": N, "max_new_tokens": 8}}, "task's max_new_tokens differs"),
    "sampling": ({"task": TASK | {"items": N, "sampling": {"frames": 8}}}, "task's sampling differs"),
    "seed": ({"settings": SETTINGS | {"seed": 1}}, "the setting seed differs: 0 and 1"),
    "dtype": ({"settings": SETTINGS | {"dtype": "bfloat16"}}, "the setting dtype differs"),
    "attention": ({"settings": SETTINGS | {"attention": "eager"}}, "the setting attention differs"),
    "new setting": ({"settings": SETTINGS | {"temperature": 0.7}}, "the setting temperature differs: None and 0.7"),
    "unfinished": ({"task": TASK | {"items": N + 2}}, "is not finished: 6 of 8 items"),
}


@pytest.mark.parametrize("case", SAMPLE_CASES)
def test_other_questions_are_refused(tmp_path: Path, case: str) -> None:
    first, second, said = SAMPLE_CASES[case]
    one, other = run(tmp_path / "one", first), run(tmp_path / "other", second)
    comparable(one, run(tmp_path / "again", list(reversed(first))))
    with pytest.raises(InputError, match=said):
        comparable(one, other)
    with pytest.raises(InputError, match="Accepted: runs that asked the same items in the same way"):
        comparable(other, one)


@pytest.mark.parametrize("case", HEADER_CASES)
def test_another_way_of_asking_is_refused(tmp_path: Path, case: str) -> None:
    changed, said = HEADER_CASES[case]
    one = run(tmp_path / "one", samples(SCORES))
    with pytest.raises(InputError, match=said):
        comparable(one, run(tmp_path / "other", samples(SCORES), header(N, **changed)))


def test_what_does_not_change_the_question_may_differ(tmp_path: Path) -> None:
    settings = {"settings": SETTINGS | {"batch_size": 1, "limit": N}, "device": "GPU", "packages": {"torch": "2.14.0"}}
    one = run(tmp_path / "one", samples(SCORES))
    other = run(tmp_path / "other", samples([0.0] * N), header(N, "fastv", **settings))
    comparable(one, other)
    places = place_differences(one.header, other.header)
    assert len(places) == 4 and "machine: 2-core CPU and GPU" in places and "torch: 2.15.0 and 2.14.0" in places
    comparable(one, run(tmp_path / "model", samples(SCORES), header(N, model="other")), across_models=True)
    # a file that lies elsewhere now shows the same frames
    comparable(run(tmp_path / "here", films()), run(tmp_path / "there", films(video="b.mp4")))


def test_an_item_that_could_not_be_shown_is_not_another_picture(tmp_path: Path) -> None:
    broken = lines(media=[], status="error", error="no such file", answer="", score=0.0, parsed=None)
    comparable(run(tmp_path / "one", samples(SCORES)), run(tmp_path / "other", broken))


def test_smaller_pictures_are_meant_but_questions_are_not(tmp_path: Path) -> None:
    def shrunk(**changed: Any) -> list[Sample]:
        return [replace(one, media=[{"picture": "s", "size": [8, 6]}]) for one in lines(**changed)]

    one = run(tmp_path / "one", samples(SCORES))
    comparable(one, run(tmp_path / "small", shrunk(), downsized(N)))
    with pytest.raises(InputError, match="pictures differ"):
        comparable(one, run(tmp_path / "secret", shrunk()))
    with pytest.raises(InputError, match="prompts differ"):
        comparable(one, run(tmp_path / "other", shrunk(prompt="?"), downsized(N)))
    film = run(tmp_path / "film", films())
    comparable(film, run(tmp_path / "smallfilm", films(digest="s"), downsized(N)))
    with pytest.raises(InputError, match="frames differ"):
        comparable(film, run(tmp_path / "otherfilm", films(indices=[1]), downsized(N)))


@pytest.mark.parametrize("look", ["prompts", "gold answers"])
def test_without_a_look_the_refusal_is_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, look: str) -> None:
    """The cases above go red where one look is taken out."""
    looks: dict[str, Callable[[Sample], Any]] = {
        name: read for name, read in comparable_module._LOOKS.items() if name != look
    }
    monkeypatch.setattr(comparable_module, "_LOOKS", looks)
    first, second, _ = SAMPLE_CASES["prompt" if look == "prompts" else "gold"]
    comparable(run(tmp_path / "one", first), run(tmp_path / "other", second))
