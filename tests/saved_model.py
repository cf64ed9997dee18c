"""A tiny random LLaVA with its processor in a folder, as a user would have it."""

from pathlib import Path

import pytest
import transformers

from vlm_eff.eval.loading import load_subject
from vlm_eff.eval.subject import Subject
from vlm_eff.reference.model import Preset, build_model
from vlm_eff.reference.vocabulary import build_processor

LAYERS = 8
TOKENS = 144


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Written by `save_pretrained`; 8 decoder layers, 144 visual tokens an image."""
    transformers.logging.disable_progress_bar()
    folder = tmp_path_factory.mktemp("model")
    processor = build_processor()
    build_model(Preset(32, 2, 2, 32, LAYERS, 2, 1, 16, 64), processor, seed=0).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def subject(model_folder: Path) -> Subject:
    """The tiny model, loaded."""
    return load_subject(str(model_folder), device="cpu")
