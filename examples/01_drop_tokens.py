"""Put a plugin on an unmodified model, ask it something, and see what was saved.

On a real model: python examples/01_drop_tokens.py --model llava-hf/llava-1.5-7b-hf
"""

import typer
from transformers import AutoModelForImageTextToText, AutoProcessor

from vlm_eff import attach
from vlm_eff.eval.loading import device_of, quiet_libraries
from vlm_eff.reference import reference_folder
from vlm_eff.reference.scenes import make_scene, render
from vlm_eff.tokens import fastv


def main(model: str | None = None) -> None:
    quiet_libraries()
    # any supported model that transformers loads works the same; the small one of this folder comes along
    name = model or reference_folder()
    vlm = AutoModelForImageTextToText.from_pretrained(name, dtype="auto").to(device_of("auto")).eval()
    processor = AutoProcessor.from_pretrained(name)

    picture, question = render(make_scene(3, "test")), "how many objects are there?"
    asked = [{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": question}]}]
    inputs = processor.apply_chat_template(
        asked, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    ).to(vlm.device, vlm.dtype)

    with attach(vlm, fastv(layer=2, keep_ratio=0.5)) as handle:
        output = vlm.generate(**inputs, max_new_tokens=8, do_sample=False)

    print(question, processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
    print(handle.stats())
    print("the model is as it was:", handle)


if __name__ == "__main__":
    typer.run(main)
