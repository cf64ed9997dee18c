"""Two settings of every method that acts inside the vision tower, as in `cases`, and one that changes nothing.

What the decoder sees is another matter: these methods have contracts of their own, in `test_towers`.
"""

from vlm_eff.core.plugin import Plugin
from vlm_eff.tokens import tome

TOWER_CASES: dict[str, tuple[Plugin, Plugin]] = {
    "tome": (tome(r=1), tome(r_ratio=0.2)),
}
TOWER_HARD = {name: hard for name, (_, hard) in TOWER_CASES.items()}

TOWER_NOTHING: dict[str, Plugin] = {
    "tome": tome(r=0),
}
