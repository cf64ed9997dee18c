"""Every command line in README and docs is one that our programs take; those that are quick are run."""

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.docs.blocks import Block, all_blocks, check_printed, commands, words
from tests.docs.command_lines import check
from tests.saved_model import model_folder
from vlm_eff.cli import app
from vlm_eff.reference.scenes import make_scene, render

__all__ = ["model_folder"]

BLOCKS = all_blocks()
SHELL = [block for block in BLOCKS if block.language == "bash"]

# checked word by word, but not run; every other vlm-eff command of a page is run
NOT_RUN = {
    "vlm-eff demo": "opens a page and serves it until it is stopped; tests/demo asks it",
    "vlm-eff tune": "a search takes minutes; tests/eval/tuning runs small ones",
    "vlm-eff import": "reads files that another harness wrote; tests/bridges writes and imports such files",
    "vlm-eff reference build": "needs packages of 190 MB; `make smol` runs it",
    "vlm-eff run --model smol": "the same",
    "vlm-eff diffuse --model FOLDER_OR_HUB_ID": "no pipeline with a text encoder comes along; tests/diffusion has them",
}
# said behind the words of the page, so that a command takes seconds; the last word of an option counts
SMALLER = {
    "run": ["--max-new-tokens", "3"],
    "bench": ["--pairs", "3", "--warmup", "0", "--no-flops", "--batch", "2", "--new-tokens", "2"],
    "diffuse": ["--steps", "6"],
    "eval": ["--limit", "3", "--no-baselines"],
    "kv-meter": ["--steps", "2"],
    "kernels": ["--device", "cpu"],
}


@pytest.fixture
def scenery(model_folder: Path, tmp_path: Path) -> Path:
    """A folder with what pages call photo.jpg, FOLDER_OR_HUB_ID, TextVQA and so on."""
    folder = tmp_path
    render(make_scene(3, "test")).save(folder / "scene.png")
    for number, name in enumerate(("photo.jpg", "a.png", "b.png")):
        render(make_scene(number, "test")).save(folder / name)
    pictures = folder / "TextVQA" / "train_images"
    pictures.mkdir(parents=True)
    render(make_scene(3, "test")).save(pictures / "aa.jpg")
    asked = {"image_id": "aa", "question": "what word is written?", "answers": ["van"] * 10}
    rows = [asked | {"question_id": number} for number in range(3)]
    (folder / "TextVQA" / "TextVQA_0.5.1_val.json").write_text(json.dumps({"data": rows}))
    (folder / "questions" / "images").mkdir(parents=True)
    render(make_scene(3, "test")).save(folder / "questions" / "images" / "aa.png")
    own = {"question": asked["question"], "answer": "van", "image": "aa.png"}
    (folder / "questions" / "questions.jsonl").write_text(json.dumps(own) + "\n")
    for name in ("FOLDER_OR_HUB_ID", "llava-hf/llava-1.5-7b-hf"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).symlink_to(model_folder, target_is_directory=True)
    return folder


@pytest.mark.parametrize("block", SHELL, ids=str)
def test_command_lines_can_be(block: Block) -> None:
    for command in commands(block.text):
        try:
            check(command)
        except Exception as error:
            raise AssertionError(f"{block}: {command}\n{error}") from error


def run(command: str, folder: Path) -> str:
    """Run one command of `vlm-eff`, with the stars of file names filled in as a shell does; what it printed."""
    arguments: list[str] = []
    for word in words(command)[1:]:
        fewer = re.sub(r"(limit|scenes)=\d+", r"\1=2", word)
        arguments += sorted(str(path) for path in folder.glob(word)) if "/*" in word else [fewer]
    if "--pairs" not in arguments and "--compare" in arguments:
        arguments += ["--pairs", "0"]
    result = CliRunner().invoke(app, arguments + SMALLER.get(arguments[0], []))
    assert result.exit_code == 0, f"{command}\n{result.output}"
    return result.stdout


def quick(block: Block) -> list[str]:
    """The commands of a block that are run."""
    ours = [command for command in commands(block.text) if words(command)[0] == "vlm-eff"]
    return [command for command in ours if not any(command.startswith(start) for start in NOT_RUN)]


@pytest.mark.parametrize("page", sorted({block.page for block in SHELL if quick(block)}))
def test_quick_commands_run(page: str, scenery: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of a page one after another, each reading what those before it wrote."""
    monkeypatch.chdir(scenery)
    monkeypatch.setenv("COLUMNS", "120")
    printed, before = "", ""
    for block in [block for block in BLOCKS if block.page == page]:
        if block.prints and before == "bash":
            check_printed(block, printed)
        if block.language in ("python", "bash"):
            before = block.language
        if block.language == "bash":
            printed = "".join(run(command, scenery) for command in quick(block))


@pytest.mark.parametrize(
    "wrong",
    [
        "vlm-eff eval --task scenes --outputs runs",
        "vlm-eff runs --image photo.jpg",
        "vlm-eff run --image photo.jpg --plugin fastv:keep=0.5",
        "vlm-eff run --image photo.jpg --plugin fastw",
        "vlm-eff bench --pairs many",
        "vlm-eff eval --task sceens --output runs",
        'pip install ".[visions]"',
        "make tests",
        "python -m vlm_eff.reference.train --hours 3",
        "python benchmarks/missing.py",
        "lmms-eval --model vlm_eff --model_args base=llava_hf,plugin=fastv:keep=1",
        "vllm serve",
    ],
)
def test_a_wrong_command_line_is_noticed(wrong: str) -> None:
    with pytest.raises(Exception):  # noqa: B017
        check(wrong)
