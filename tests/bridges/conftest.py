"""Fixtures of this folder."""

from tests.bridges.broken import broken
from tests.saved_model import model_folder, subject

__all__ = ["broken", "model_folder", "subject"]
