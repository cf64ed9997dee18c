"""Two settings of every method that acts inside the vision tower, as in `cases`, and one that changes nothing.

What the decoder sees is another matter: these methods have contracts of their own, in `test_towers`.
"""

from vlm_eff.core.plugin import Plugin
from vlm_eff.tokens import evit, pixelprune, tome, zero_tprune

TOWER_CASES: dict[str, tuple[Plugin, Plugin]] = {
    "tome": (tome(r=1), tome(r_ratio=0.2)),
    "evit": (evit(), evit(keep_ratio=0.45, blocks=(0, 2))),
    # the tiny images are noise: exact copies are tested in tests/tokens/test_pixelprune.py
    "pixelprune": (pixelprune(), pixelprune(tau=4.0)),
    "zero_tprune": (zero_tprune(), zero_tprune(keep_ratio=0.6, similar=0.15, blocks=(1, 2))),
}
TOWER_HARD = {name: hard for name, (_, hard) in TOWER_CASES.items()}

TOWER_NOTHING: dict[str, Plugin] = {
    "tome": tome(r=0),
    "evit": evit(keep_ratio=1.0),
    "pixelprune": pixelprune(),
    "zero_tprune": zero_tprune(keep_ratio=1.0, similar=0.0),
}
