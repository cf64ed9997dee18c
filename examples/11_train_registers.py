"""Train register tokens (Victor) for a frozen model through the same hooks: enough steps to see the loss fall.

On a real model: python examples/11_train_registers.py --model llava-hf/llava-1.5-7b-hf --steps 2000 (or smol)
"""

import tempfile
from pathlib import Path

import torch
import typer

from vlm_eff import attach
from vlm_eff.eval.loading import load_subject, quiet_libraries
from vlm_eff.eval.subject import Row, Subject
from vlm_eff.reference.scenes import make_scene, questions, render
from vlm_eff.tokens import victor


def loss_on(subject: Subject, seeds: range, split: str) -> torch.Tensor:
    """Mean cross-entropy of the answers' tokens, one question a scene."""
    scenes = [make_scene(seed, split, 2) for seed in seeds]
    asked = [questions(scene, 0)[0] for scene in scenes]
    inputs = subject.batch([Row((render(scene),), one.text) for scene, one in zip(scenes, asked, strict=True)])
    tokenizer, length = subject.processor.tokenizer, inputs["input_ids"].shape[1]
    tokenizer.padding_side = "right"  # prompts are padded on the left, answers behind them on the right
    texts = [f" {one.answer}" for one in asked]
    answers = tokenizer(texts, add_special_tokens=False, padding=True, return_tensors="pt").to(subject.device)
    for name in [name for name, value in inputs.items() if value.shape == inputs["input_ids"].shape]:
        said = answers[name] if name in answers else torch.zeros_like(answers["input_ids"])
        inputs[name] = torch.cat([inputs[name], said], dim=1)
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    labels[:, :length] = -100  # the prompt is given, not learned
    return subject.model(**inputs, labels=labels, use_cache=False).loss


def main(model: str | None = None, steps: int = 12, registers: Path | None = None) -> None:
    quiet_libraries()
    subject = load_subject(model)
    subject.model.requires_grad_(False)  # frozen; leave it out to train the model too
    file, held_out = registers or Path(tempfile.mkdtemp()) / "registers.safetensors", range(24)
    with attach(subject.model, victor(registers=8, layer=3, untrained=True)) as handle:
        optimiser = torch.optim.Adam(handle.parameters(), lr=0.05)
        print(f"loss on held-out scenes: {loss_on(subject, held_out, 'validation').item():.3f}")
        for step in range(steps):
            optimiser.zero_grad()
            loss_on(subject, range(4 * step, 4 * step + 4), "train").backward()
            optimiser.step()
        print(f"after {steps} steps: {loss_on(subject, held_out, 'validation').item():.3f}")
        handle.weights["victor"].save(file)

    inputs = subject.inputs([render(make_scene(3, "test", 2))], "how many objects are there?")
    with attach(subject.model, victor(registers=8, layer=3, weights=str(file))) as handle:
        print("from the file:", subject.answer(inputs, max_new_tokens=4))
    print(handle.stats())


if __name__ == "__main__":
    typer.run(main)
