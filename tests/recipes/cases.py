"""Two settings of every recipe: defaults, and one that really acts on the tiny prompts."""

from vlm_eff.core.recipe import Recipe
from vlm_eff.recipes import zipvl

RECIPES: dict[str, tuple[Recipe, Recipe]] = {
    "zipvl": (zipvl(), zipvl(keep_mass=0.7, high_bits=8, recent=0.1, random=0.2, every=3, seed=5)),
}
