"""Unified multi-modal keys: one key for all modalities, scaled by who looks at it."""

from __future__ import annotations

from vlm_eff.core.plugin import Plugin
from vlm_eff.core.registry import method
from vlm_eff.kvcache.logits import LogitTable


@method(
    room="kvcache", acts="inside every decoder layer's attention", paper="survey, unified multi-modal KV representation"
)
def modality_logits(
    text_to_image: float = 1.0,
    image_to_text: float = 1.0,
    text_to_video: float = 1.0,
    video_to_text: float = 1.0,
    image_to_video: float = 1.0,
    video_to_image: float = 1.0,
) -> Plugin:
    """Scale attention logits between modalities: how strongly words look at pictures, and pictures at words.

    Logits   z(q, k) times a factor by the modalities of q and k; within a modality they stay
    How      queries of one modality attend as ever, to keys scaled for them; no L x L table, packed caches included
    Paper    survey, unified multi-modal KV representation; there is no official code
    Differs  the paper stores a scaled copy of every key for each modality, three times the memory; scaling a key is
             scaling its logits, so one copy does the same
    Beside   plugins that evict, merge or pack entries: the attention that they are shown knows the table. Refused
             beside plugins that read attention inside the decoder, such as fastv
    Cost     a scaled copy of a layer's keys while it attends; prompts attend once for each different line of factors
             (twice for text and images)
    Saves    nothing by itself: it is the dial that a compressed cache can be tuned with

    Args:
        text_to_image: factor of the logits of text queries with image keys. 1 leaves them, below 1 evens the attention
            out, above 1 sharpens it; 0 makes all images of a prompt equally likely and hides none.
        image_to_text: of image queries with text keys.
        text_to_video: of text queries with video keys.
        video_to_text: of video queries with text keys.
        image_to_video: of image queries with video keys.
        video_to_image: of video queries with image keys. With all at 1, the default, nothing changes.

    Raises:
        ConfigError: a factor that is no finite number.
    """
    return LogitTable(
        "modality_logits",
        (
            (1.0, text_to_image, text_to_video),
            (image_to_text, 1.0, image_to_video),
            (video_to_text, video_to_image, 1.0),
        ),
    )
