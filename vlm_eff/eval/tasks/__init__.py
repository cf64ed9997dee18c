"""Questions to ask: what an item is, and readers of the official files of image and video benchmarks.

Start reading at `item.py`, then `source.py`. Nothing here unpickles.
"""

from vlm_eff.eval.tasks import (
    bundled,
    choice_tables,
    documents,
    gqa,
    grounding,
    long_videos,
    mmmu,
    moving,
    own,
    short_videos,
    vqa_json,
    yes_no,
)
from vlm_eff.eval.tasks.item import Footage, Item, Picture, Task
from vlm_eff.eval.tasks.source import TASKS, TaskSource, all_tasks, load_task
from vlm_eff.eval.tasks.submission import write_submission

__all__ = [
    "TASKS",
    "Footage",
    "Item",
    "Picture",
    "Task",
    "TaskSource",
    "all_tasks",
    "bundled",
    "choice_tables",
    "documents",
    "gqa",
    "grounding",
    "load_task",
    "long_videos",
    "mmmu",
    "moving",
    "own",
    "short_videos",
    "vqa_json",
    "write_submission",
    "yes_no",
]
