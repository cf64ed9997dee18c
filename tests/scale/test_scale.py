"""Several devices and processes: decisions are those of one. One launch of two ranks for everything."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
from torch import nn

from tests.scale.spread_heads import differences, run
from tests.tiny import tiny_inputs, tiny_vlm
from vlm_eff import attach
from vlm_eff.core.errors import CapabilityError
from vlm_eff.core.handle import HandleNeverFired
from vlm_eff.kvcache import hessian
from vlm_eff.models.ranks import Ranks, is_spread
from vlm_eff.tokens import fastervlm, fastv, victor

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """What the processes of `launch` wrote, by name."""
    folder = tmp_path_factory.mktemp("ranks")
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    launch = [sys.executable, "-m", "tests.scale.launch", str(folder)]
    done = subprocess.run(launch, env=env, cwd=ROOT, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return lambda name: json.loads((folder / f"{name}.json").read_text())


@pytest.fixture
def ranks(launched: Callable[[str], Any]) -> list[dict[str, Any]]:
    """What each of two ranks wrote."""
    return [launched(f"rank-{rank}") for rank in (0, 1)]


def test_state_follows_hidden_states_to_another_device(launched: Callable[[str], Any]) -> None:
    made = launched("places")
    assert made["wrong"] == {}
    assert "same device" in made["behind"], "state that stays behind was not noticed"


def test_a_killed_process_loses_its_part_alone(launched: Callable[[str], Any]) -> None:
    made = launched("parts")
    assert made["codes"] == [0, -9]
    assert 0 < made["left"] < 12
    assert made["finished"] and made["same"]


def test_weights_that_are_offloaded_are_asked_for_by_calling() -> None:
    model, inputs = tiny_vlm("llava"), tiny_inputs("llava")
    plugins = (victor(registers=3, layer=2, untrained=True), hessian(keep_ratio=0.5, metric="output"))
    wanted = run(model, inputs, plugins)
    accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    assert differences(run(model, inputs, plugins), wanted) == []


def test_ranks_decide_as_one_process(ranks: list[dict[str, Any]]) -> None:
    assert [one["wrong"] for one in ranks] == [{}, {}]


def test_ranks_that_hear_nothing_of_one_another_are_found_out(ranks: list[dict[str, Any]]) -> None:
    for one in ranks:
        assert all(what and any("logits" in line for line in what) for what in one["cut"].values()), one["cut"]


def test_what_cannot_be_decided_alike_is_refused(ranks: list[dict[str, Any]]) -> None:
    for one in ranks:
        assert set(one["refused"]) == {"training", "sequence", "uneven"}
        assert "2 of 8 and 1 of 4 heads" in one["refused"]["uneven"]


def test_a_report_says_whose_bytes_it_counts(ranks: list[dict[str, Any]]) -> None:
    assert all("cache of one of 2 ranks" in one["stats"] for one in ranks)


class _Mesh:
    def __init__(self, *names: str) -> None:
        self.mesh_dim_names, self.ndim = names, len(names)

    def get_group(self, name: str | None = None) -> str:
        return "group"


@pytest.mark.parametrize(("names", "spread"), [(("fsdp",), False), (("pp", "tp"), True), (("tp",), True)])
def test_only_tensor_parallelism_spreads_heads(names: tuple[str, ...], spread: bool) -> None:
    layer = nn.Linear(2, 2)
    layer.weight.device_mesh = _Mesh(*names)  # type: ignore[attr-defined]
    assert is_spread(layer) == spread


def test_a_spread_tower_is_refused_where_it_is_looked_at() -> None:
    model = tiny_vlm("llava")
    model.model.vision_tower.encoder.layers[0].self_attn.q_proj.weight.device_mesh = _Mesh("tp")
    with pytest.warns(HandleNeverFired):
        attach(model, fastv()).detach()
    with pytest.raises(CapabilityError, match="vision tower whose heads are spread"):
        attach(model, fastervlm())


def test_heads_that_cannot_be_put_together_are_refused() -> None:
    ranks = Ranks(queries=8, keys=4, size=2)
    assert ranks.all_queries(torch.ones(1, 8, 3)).shape == (1, 8, 3)
    with pytest.raises(CapabilityError, match="3 of 8 heads on rank 0 of 2"):
        ranks.all_queries(torch.ones(1, 3, 5))
    assert Ranks(queries=8, keys=4, size=2, rank=1).own(torch.arange(4)[None]).tolist() == [[2, 3]]
