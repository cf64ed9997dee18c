"""The parts of gpu_kernels.py: what is measured of each operation, against which rivals, and how it is timed.

Each module named in OPERATIONS has STEPS: functions of a session; those called `check...` run first, for all of them.
"""

# in the order of what a cut-off run should have
OPERATIONS = (
    "ceilings",
    "packed_decode",
    "window_scores",
    "sparse_attention",
    "pack",
    "selected_attention",
    "column_scores",
    "tome",
    "compact",
)
