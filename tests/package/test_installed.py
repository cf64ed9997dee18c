"""The installed wheel, used in an empty folder as somebody uses it who has never seen the repository."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image

import vlm_eff
from tests.package.conftest import ROOT, Run
from vlm_eff.reference.scenes import make_scene, render

USER = """
from vlm_eff import Handle, attach, plugin
from vlm_eff.core.plugin import Plugin
from vlm_eff.tokens import fastv

mine: Plugin = fastv(keep_ratio=0.5)
with attach(object(), mine, plugin("snapkv")) as handle:
    held: Handle = handle
wrong: int = handle
fastv(keep_ratio="half")
"""


def test_it_is_the_wheel_that_runs(run_installed: Run, tmp_path: Path) -> None:
    said = run_installed("vlm-eff", "--version", folder=tmp_path)
    assert said.stdout == f"vlm-eff {vlm_eff.__version__}\n", said.stderr
    where = run_installed("python", "-c", "import vlm_eff; print(vlm_eff.__file__)", folder=tmp_path)
    assert "site-packages" in where.stdout and str(ROOT / "vlm_eff") not in where.stdout


def test_methods(run_installed: Run, tmp_path: Path) -> None:
    said = run_installed("vlm-eff", "methods", "--json", folder=tmp_path)
    assert said.returncode == 0, said.stderr
    ours = {name for name, method in vlm_eff.methods().items() if method.room != "third party"}
    assert {row["name"] for row in json.loads(said.stdout)} >= ours


def test_a_picture_of_what_was_dropped(run_installed: Run, tmp_path: Path) -> None:
    render(make_scene(3, "test")).save(tmp_path / "scene.png")
    command = ("run", "--image", "scene.png", "--prompt", "what word is written?", "--plugin", "pyramiddrop")
    said = run_installed("vlm-eff", *command, "--save", "kept", "--json", folder=tmp_path)
    assert said.returncode == 0, said.stderr
    assert json.loads(said.stdout)["answer"] == "van"
    (picture,) = (tmp_path / "kept").glob("overlay*.png")
    with Image.open(picture) as overlay:
        assert len(overlay.getcolors(1 << 24) or ()) > 2


def test_doctor_knows_the_extras(run_installed: Run, tmp_path: Path) -> None:
    said = run_installed("vlm-eff", "doctor", "--json", folder=tmp_path)
    found = json.loads(said.stdout)
    assert found["version"] == vlm_eff.__version__
    extras = {extra["name"]: extra for extra in found["extras"]}
    assert {"demo", "diffusion", "eval", "video"} <= set(extras) and "dev" not in extras
    assert extras["video"]["command"] == 'pip install "vlm-eff[video]"'
    assert next(one for one in found["packages"] if one["name"] == "transformers")["needed"] == ">=5.23"
    assert not [remark for remark in found["remarks"] if "vlm-eff" in remark]


def test_its_types_are_seen(run_installed: Run, tmp_path: Path) -> None:
    (tmp_path / "user.py").write_text(USER, encoding="utf-8")
    # what other packages declare is not asked about here, and takes minutes to read
    others = "[mypy]\nstrict = true\n[mypy-torch.*,transformers.*,diffusers.*,numpy.*,PIL.*]\nfollow_imports = skip\n"
    (tmp_path / "mypy.ini").write_text(others, encoding="utf-8")
    said = run_installed("python", "-m", "mypy", "user.py", folder=tmp_path)
    wrong = [line.split(":")[1] for line in said.stdout.splitlines()[:-1]]
    assert wrong == ["9", "10"] and '"Handle"' in said.stdout and '"fastv"' in said.stdout, said.stdout + said.stderr
