"""Fixtures of this folder."""

from tests.saved_model import model_folder

__all__ = ["model_folder"]
