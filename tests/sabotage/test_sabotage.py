"""Every contract check turns red when the library is broken in the way it watches for."""

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import AttentionInterface, AttentionMaskInterface

from tests.contracts import (
    checks,
    kit,
)
from tests.sabotage.block_saboteurs import BLOCK_SABOTEURS
from tests.sabotage.denoise_saboteurs import DENOISE_SABOTEURS
from tests.sabotage.kv_saboteurs import KV_SABOTEURS
from tests.sabotage.saboteurs import SABOTEURS as DECODER_SABOTEURS
from tests.sabotage.tower_saboteurs import TOWER_SABOTEURS

SABOTEURS = DECODER_SABOTEURS | TOWER_SABOTEURS | KV_SABOTEURS | BLOCK_SABOTEURS | DENOISE_SABOTEURS

# what checks are made of
NO_CHECK = {"image_tokens", "entry_embeds", "found_cells", "true_cells", "words", "next_turn", "as_embeddings"}
NO_CHECK |= {"leaves_nothing", "relative", "scheduler_state", "unchanged", "bare"}


@pytest.fixture(autouse=True)
def fresh_models() -> Iterator[None]:
    """A saboteur may leave hooks on models and names in registries: nobody else must meet them."""
    registries = [AttentionInterface._global_mapping, AttentionMaskInterface._global_mapping]
    before = [dict(registry) for registry in registries]
    kit.model_of.cache_clear()
    yield
    kit.model_of.cache_clear()
    for registry, known in zip(registries, before, strict=True):
        registry.clear()
        registry.update(known)


def counted(made: Any, hits: list[int]) -> Any:
    """`made`, noting each use."""
    if isinstance(made, property):
        return property(lambda self: hits.append(1) or made.fget(self), made.fset)
    if not callable(made):
        return made

    def call(*args: Any, **kwargs: Any) -> Any:
        hits.append(1)
        return made(*args, **kwargs)

    return call


@pytest.mark.filterwarnings("ignore::vlm_eff.core.handle.HandleNeverFired")
@pytest.mark.parametrize("name", SABOTEURS)
def test_a_saboteur_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    saboteur = SABOTEURS[name]
    owner = pkgutil.resolve_name(saboteur.target.rpartition(".")[0])
    attribute = saboteur.target.rpartition(".")[2]
    missing_is_fine = attribute in ("__deepcopy__", "active")
    hits: list[int] = []
    made = saboteur.make(vars(owner).get(attribute) if missing_is_fine else vars(owner)[attribute])
    replacement = counted(made, hits)
    monkeypatch.setattr(owner, attribute, replacement, raising=not missing_is_fine)
    with pytest.raises((Exception, pytest.fail.Exception)):
        saboteur.check(*saboteur.args)
    assert hits or replacement is made, "the check never came near the saboteur"


FOLDER = Path(checks.__file__).parent
CHECKS = [importlib.import_module(f"tests.contracts.{path.stem}") for path in sorted(FOLDER.glob("checks*.py"))]
CHECKS.append(importlib.import_module("tests.diffusion.checks"))


def test_every_check_has_a_saboteur() -> None:
    known = {
        name
        for module in CHECKS
        for name, made in vars(module).items()
        if inspect.isfunction(made) and made.__module__ == module.__name__ and not name.startswith("_")
    }
    caught = {getattr(one.check, "func", one.check).__name__ for one in SABOTEURS.values()}
    assert known - NO_CHECK - caught == set()
    assert known >= NO_CHECK
    assert caught <= known
