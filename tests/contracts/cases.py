"""Two settings of every method: one that a lazy implementation may survive, and one that it should not."""

from vlm_eff.core.plugin import Plugin
from vlm_eff.tokens import average_pool, fastv, feather, pyramiddrop, random_drop, uniform_grid

METHOD_CASES: dict[str, tuple[Plugin, Plugin]] = {
    "fastv": (fastv(), fastv(layer=1, keep_ratio=0.3)),
    # layers 1, 2 and 4 of 6: two of them between DeepStack features and on sliding layers
    "pyramiddrop": (pyramiddrop(), pyramiddrop(keep_ratio=0.6, layers=(1, 2, 4))),
    "feather": (feather(), feather(keep_ratio=0.6, layers=(1, 3), stride=4)),
    "random_drop": (random_drop(), random_drop(keep_ratio=0.3, layer=2, seed=3)),
    "uniform_grid": (uniform_grid(), uniform_grid(keep_count=3, layer=1)),
    "average_pool": (average_pool(), average_pool(keep_ratio=0.5, layer=2)),
}
EASY = {name: easy for name, (easy, _) in METHOD_CASES.items()}
HARD = {name: hard for name, (_, hard) in METHOD_CASES.items()}

KEEP_ALL: dict[str, Plugin] = {
    "fastv": fastv(keep_ratio=1.0),
    "pyramiddrop": pyramiddrop(keep_ratio=1.0),
    "feather": feather(keep_ratio=1.0),
    "random_drop": random_drop(keep_ratio=1.0),
    "uniform_grid": uniform_grid(keep_ratio=1.0),
    "average_pool": average_pool(keep_ratio=1.0),
}

# the method that touches most of the runtime: several stages, a score of its own, layers of every kind
HARDEST = HARD["pyramiddrop"]
