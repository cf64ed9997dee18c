"""One family a file: how its visual tokens lie in the sequence. Importing this package registers them all."""

from vlm_eff.models.vlm import (  # noqa: F401  (imported for their registration)
    gemma3,
    idefics3,
    internvl,
    llava,
    llava_next,
    mistral3,
    qwen_vl,
)
