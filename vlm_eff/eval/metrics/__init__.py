"""Official metrics as pure functions on strings: a score, what was read from the answer, and how that went.

`METRICS.get(name)` has every metric; its rule's docstring says which keys `gold` and `groups` hold. `name/official`,
`name/lmms` and `name/vlmevalkit` repeat known oddities of those codes. Start reading at `metric.py`.
"""

# a file offers its metrics by being imported
from vlm_eff.eval.metrics import boxes, choice, short_answers, video_choice, vqa, yes_no
from vlm_eff.eval.metrics.metric import METRICS, Metric, Scored
from vlm_eff.eval.metrics.score import EMPTY, STATUSES, Score, Status

__all__ = [
    "EMPTY",
    "METRICS",
    "STATUSES",
    "Metric",
    "Score",
    "Scored",
    "Status",
    "boxes",
    "choice",
    "short_answers",
    "video_choice",
    "vqa",
    "yes_no",
]
