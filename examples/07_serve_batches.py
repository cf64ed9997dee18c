"""A serving loop: requests in batches padded on the left, one handle for all of them, numbers for each batch.

On a real model: python examples/07_serve_batches.py --model Qwen/Qwen2.5-VL-3B-Instruct (or smol)
"""

import time
from itertools import islice

import torch
import typer

from vlm_eff import attach
from vlm_eff.eval.loading import load_subject, quiet_libraries
from vlm_eff.eval.subject import Row
from vlm_eff.kvcache import streaming_llm
from vlm_eff.reference.scenes import make_scene, questions, render
from vlm_eff.tokens import pyramiddrop

BATCH = 4


def requests(count: int):
    """What comes in: a picture, a question of any length, and the answer that nobody tells the model."""
    for seed in range(count):
        scene = make_scene(seed, "test")
        asked = questions(scene, seed)[0]
        yield Row((render(scene),), asked.text), asked.answer


def main(model: str | None = None) -> None:
    quiet_libraries()
    subject = load_subject(model)
    waiting, right, seen = requests(12), 0, 0
    # attached once, at the start of the service; requests come and go
    with attach(subject.model, pyramiddrop(keep_ratio=0.5), streaming_llm(keep_ratio=0.5)) as handle:
        while batch := list(islice(waiting, BATCH)):
            handle.reset()  # forget the reports of the batch before, so that they do not pile up
            rows, answers = zip(*batch, strict=True)
            inputs = subject.batch(rows)
            started = time.perf_counter()
            with torch.inference_mode():
                output = subject.model.generate(**inputs, max_new_tokens=8, do_sample=False)
            took = time.perf_counter() - started
            texts = subject.processor.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
            right += sum(text.strip() == answer for text, answer in zip(texts, answers, strict=True))
            seen += len(batch)
            stats = handle.stats()
            padding = (inputs["attention_mask"] == 0).sum(1).tolist()
            print(f"{len(batch)} requests in {took:.2f} s, padding {padding}, n_eq {stats.last.n_eq:.0f}", end=", ")
            print(f"FLOPs x{stats.last.flops / stats.last.flops_bare:.2f}, {stats.decode_steps} decode steps", end=", ")
            print(f"cache {stats.kv_bytes / 1e3:.0f} kB of {stats.kv_bytes_bare / 1e3:.0f}")
    print(f"{right} of {seen} right")


if __name__ == "__main__":
    typer.run(main)
