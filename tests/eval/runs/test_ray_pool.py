"""A pool of Ray Data workers writes the lines of one process, and fails where that would.

Without Ray only its absence is tested; `make test-ray` tests all of it.
"""

import importlib
import importlib.util
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from tests.docs.blocks import all_blocks
from vlm_eff.cli import app
from vlm_eff.core.config import part
from vlm_eff.core.errors import CapabilityError, ConfigError, InputError
from vlm_eff.core.plugin import Plugin
from vlm_eff.eval.loading import load_subject
from vlm_eff.eval.runs.folder import HEADER, SAMPLES, Run, SampleWriter, read_run
from vlm_eff.eval.runs.ray_pool import run_with_ray
from vlm_eff.eval.runs.run import RunSettings, run_task
from vlm_eff.eval.subject import Subject
from vlm_eff.eval.tasks.item import Task
from vlm_eff.tokens import fastv, random_drop, uniform_grid
from vlm_eff.tokens.reducer import TokenReducer

SETTINGS, FEW = RunSettings(batch_size=2), (random_drop(keep_ratio=0.3, seed=5),)
needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")
# of Ray itself
noisy = pytest.mark.filterwarnings("ignore")
Pool = Callable[..., Run]


def load(folder: str, seen: Path | None = None, *, own_name: bool = False) -> Subject:
    """The tiny model; in one of two workers that have each left a sign in `seen`, or under another name in each."""
    torch.set_num_threads(1)
    found = load_subject(folder, device="cpu")
    if seen is None:
        return found
    (seen / str(os.getpid())).touch()
    until = time.monotonic() + 240
    while len(list(seen.iterdir())) < 2:
        assert time.monotonic() < until, "the other worker has nothing to do"
        time.sleep(0.05)
    return replace(found, name=f"{found.name} {os.getpid()}") if own_name else found


def lines(run: Run) -> dict[str, dict[str, Any]]:
    return {name: asdict(sample) for name, sample in run.samples.items()}


@part
@dataclass(frozen=True)
class BrokenInPool(TokenReducer):
    """Works for a while in each worker, then raises, or ends the process as a crash would."""

    crashes: bool = False

    def at(self, site: Any, view: Any) -> Any:
        CALLS.append(1)
        if len(CALLS) > 2:
            if self.crashes:
                os._exit(1)
            raise RuntimeError("the plugin is broken")
        return super().at(site, view)


CALLS: list[int] = []


def broken(*, crashes: bool) -> Plugin:
    whole = uniform_grid(keep_ratio=0.5)
    assert isinstance(whole, TokenReducer)
    return BrokenInPool(**{name: getattr(whole, name) for name in whole.__dataclass_fields__}, crashes=crashes)


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    """A Ray that is the user's: no call ends it."""
    found = importlib.import_module("ray")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    found.init(num_cpus=2, num_gpus=0, include_dashboard=False, log_to_driver=False)
    yield found
    assert found.is_initialized()
    found.shutdown()


@pytest.fixture
def pool(ray: Any, model_folder: Path) -> Pool:
    """One worker with the tiny model."""
    return partial(run_with_ray, partial(load, str(model_folder)), workers=1, settings=SETTINGS)


@pytest.fixture
def seen(tmp_path: Path) -> Path:
    """Where workers of one test meet."""
    (tmp_path / "seen").mkdir()
    return tmp_path / "seen"


def test_without_ray_the_install_line_is_said(
    task: Task, subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(CapabilityError, match=r'pip install "vlm-eff\[ray\]"'):
        run_with_ray(lambda: subject, task, (), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@needs_ray
@noisy
def test_lines_are_those_of_one_process(
    model_folder: Path, seen: Path, subject: Subject, task: Task, tmp_path: Path
) -> None:
    settings, watched = RunSettings(batch_size=1), list[tuple[int, int]]()
    whole = run_task(subject, task, FEW, tmp_path / "whole", specs=("few",), settings=settings)
    made = run_with_ray(
        partial(load, str(model_folder), seen),
        task,
        FEW,
        tmp_path / "pool",
        specs=("few",),
        settings=settings,
        watch=lambda done, total: watched.append((done, total)),
    )
    assert made.finished and made.header == whole.header and lines(made) == lines(whole)
    assert made.samples["q10"].status == "error"
    assert watched == [(done, 11) for done in range(1, 12)]
    assert len(list(seen.iterdir())) == 2
    assert not importlib.import_module("ray").is_initialized(), "what was started for a run is ended with it"


@needs_ray
@noisy
def test_a_run_of_one_process_is_finished_by_a_pool(pool: Pool, subject: Subject, task: Task, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    whole = lines(run_task(subject, task, FEW, folder, settings=SETTINGS))
    written = (folder / SAMPLES).read_bytes().splitlines(keepends=True)
    # an odd number of lines: one batch has half of its own; and a line that was cut
    (folder / SAMPLES).write_bytes(b"".join(written[:7]) + written[7][:40])
    assert lines(pool(task, FEW, folder)) == whole
    before = (folder / SAMPLES).read_bytes()
    assert before.startswith(b"".join(written[:7])) and before.count(b"\n") == 11
    with pytest.raises(InputError, match="another plugins"):
        pool(task, (), folder)
    assert (folder / SAMPLES).read_bytes() == before


@needs_ray
@noisy
def test_a_run_of_a_pool_is_finished_by_one_process(
    pool: Pool, subject: Subject, task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    added = list[int]()

    def interrupted(self: SampleWriter, samples: Any, add: Any = SampleWriter.add) -> None:
        add(self, samples)
        added.append(1)
        if len(added) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(SampleWriter, "add", interrupted)
        with pytest.raises(KeyboardInterrupt):
            pool(task, FEW, tmp_path / "run")
    assert 0 < len(read_run(tmp_path / "run").samples) < len(task.items)
    whole = run_task(subject, task, FEW, tmp_path / "whole", settings=SETTINGS)
    assert lines(run_task(subject, task, FEW, tmp_path / "run", settings=SETTINGS)) == lines(whole)


@needs_ray
@noisy
def test_what_a_plugin_raises_fails_the_run(pool: Pool, task: Task, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="the plugin is broken") as caught:
        pool(task, (broken(crashes=False),), tmp_path / "broken")
    assert any("while asking items" in note for note in caught.value.__notes__)
    assert 0 < len(read_run(tmp_path / "broken").samples) < len(task.items)
    with pytest.raises(CapabilityError, match="layer 99"):
        pool(task, (fastv(layer=99),), tmp_path / "refused")
    assert not (tmp_path / "refused").exists()


@needs_ray
@noisy
def test_a_worker_that_dies_fails_the_run(pool: Pool, task: Task, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="a worker died"):
        pool(task, (broken(crashes=True),), tmp_path / "dies")
    assert not read_run(tmp_path / "dies").finished


@needs_ray
@noisy
def test_workers_of_different_models_are_refused(
    ray: Any, model_folder: Path, seen: Path, task: Task, tmp_path: Path
) -> None:
    different = partial(load, str(model_folder), seen, own_name=True)
    with pytest.raises(InputError, match="another worker has a run with another model"):
        run_with_ray(different, task, FEW, tmp_path / "run", settings=RunSettings(batch_size=1))
    assert (tmp_path / "run" / HEADER).exists() and not read_run(tmp_path / "run").finished


@needs_ray
@noisy
def test_a_pool_that_fits_nowhere_is_refused_at_once(pool: Pool, task: Task, tmp_path: Path) -> None:
    for wrong in ({"workers": 0}, {"cpus": 3}, {"gpus": 0.5}):
        with pytest.raises(ConfigError, match="each with cpus="):
            pool(task, FEW, tmp_path / "none", **wrong)
    assert not (tmp_path / "none").exists()


@needs_ray
@noisy
def test_the_example_of_the_page_makes_what_the_command_line_takes_up(
    ray: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (example,) = [block.text for block in all_blocks() if "import run_with_ray" in block.text]
    made = dict[str, Any]()
    exec(example.replace("limit=100", "limit=3").replace("workers=2", "workers=1"), made)
    assert made["run"].finished
    written = (tmp_path / "runs/easy-vqa/fastv" / SAMPLES).stat()
    command = "eval --task easy-vqa --limit 3 --plugin fastv --output runs --no-baselines --device cpu"
    result = CliRunner().invoke(app, command.split())
    assert result.exit_code == 0, result.output
    assert (tmp_path / "runs/easy-vqa/fastv" / SAMPLES).stat().st_mtime_ns == written.st_mtime_ns
