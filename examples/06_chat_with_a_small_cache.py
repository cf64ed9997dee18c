"""A chat of three turns about one picture, out of a KV cache that is compressed turn by turn.

On a real model: python examples/06_chat_with_a_small_cache.py --model llava-hf/llava-1.5-7b-hf (or smol)
"""

import torch
import typer
from transformers import DynamicCache

from vlm_eff import attach
from vlm_eff.eval.loading import load_subject, quiet_libraries
from vlm_eff.kvcache import snapkv
from vlm_eff.reference.scenes import make_scene, render

QUESTIONS = ("how many objects are there?", "what word is written?", "where is the word?")


def behind_an_answer(processor, question: str) -> str:
    """What a chat template writes behind an answer: its end, and the next question."""
    turns = [("user", "a"), ("assistant", "ANSWER"), ("user", question)]
    chat = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in turns]
    return processor.apply_chat_template(chat, add_generation_prompt=True).rpartition("ANSWER")[2]


def main(model: str | None = None) -> None:
    quiet_libraries()
    subject = load_subject(model)
    vlm, processor = subject.model, subject.processor
    inputs = subject.inputs([render(make_scene(3, "test"))], QUESTIONS[0])
    ends, said = vlm.generation_config.eos_token_id, None

    # after each prompt, before the first token behind it, the policy evicts; the cache still counts every position
    with attach(vlm, snapkv(keep_ratio=0.25, window=8)) as handle:
        cache = DynamicCache(config=vlm.config)
        for question in QUESTIONS:
            if said is not None:
                # the picture is in the cache: from here on words are enough
                new = processor.tokenizer(behind_an_answer(processor, question), add_special_tokens=False)["input_ids"]
                inputs = {"input_ids": torch.cat([said, torch.tensor([new], device=vlm.device)], dim=1)}
            output = vlm.generate(**inputs, past_key_values=cache, max_new_tokens=8, do_sample=False)
            # the template writes the end of an answer itself
            ended = output[0, -1].item() in (ends if isinstance(ends, list) else [ends])
            said = output[:, :-1] if ended else output
            answer = processor.decode(said[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
            print(f"{question} {answer.strip()}: {cache.get_seq_length()} positions seen", end=", ")
            print(f"{handle.kv_positions(0).shape[2]} entries stored of each head of layer 0")
        print(handle.stats())


if __name__ == "__main__":
    typer.run(main)
