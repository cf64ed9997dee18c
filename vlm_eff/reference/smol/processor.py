"""The processor: pictures to a small square of DINOv2 patches, questions to SmolLM2's own chat form."""

from __future__ import annotations

from transformers import CLIPImageProcessor, LlavaProcessor, PreTrainedTokenizerBase

from .decoder import IMAGE_TOKEN
from .tower import PATCH

IMAGE_SIZE = 126
GRID = IMAGE_SIZE // PATCH  # 9 patches a side, three for each cell of a scene
VISUAL_TOKENS = GRID * GRID
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# ChatML as SmolLM2 was tuned on it, less its long system prompt, which would cost 22 tokens a question
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}{% endif %}"
    "{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def build_images() -> CLIPImageProcessor:
    """Return the image processor: a square of 126 pixels without cropping, ImageNet's mean and deviation."""
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    return CLIPImageProcessor(
        size=size, crop_size=size, do_center_crop=False, image_mean=list(_MEAN), image_std=list(_STD)
    )


def build_processor(tokenizer: PreTrainedTokenizerBase) -> LlavaProcessor:
    """Return the processor, which writes one `<image>` as 81 placeholders."""
    return LlavaProcessor(
        image_processor=build_images(),
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token=IMAGE_TOKEN,
        chat_template=CHAT_TEMPLATE,
    )
