"""Other harnesses, with our plugins put on the models they build, and their results read back.

What lives here: the model `vlm_eff` of lmms-eval, the registration in VLMEvalKit, the watch that both put on a model,
and the import of their per-sample files. Neither harness is imported until it is asked for. Start at `watch.py`.
"""

from pathlib import Path

__all__ = ["tasks_folder"]


def tasks_folder() -> Path:
    """The folder of tasks that lmms-eval takes as `--include_path`."""
    return Path(__file__).resolve().parent / "lmms_tasks"
