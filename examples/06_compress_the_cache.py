"""Compress the KV cache of a chat: the image once, two questions, and what was stored."""

import torch
from transformers import DynamicCache

from vlm_eff import attach
from vlm_eff.kvcache import snapkv
from vlm_eff.reference import load_reference
from vlm_eff.reference.scenes import make_scene, render

model, processor = load_reference()
picture = render(make_scene(3, "test"))
inputs = processor(images=picture, text="user: <image> how many objects are there? assistant:", return_tensors="pt")
more = processor(text=" user: what word is written? assistant:", return_tensors="pt")

# the policy evicts after each prompt, before the first token that follows it; the cache still counts every position
with attach(model, snapkv(keep_ratio=0.25, window=8)) as handle:
    cache = DynamicCache(config=model.config)
    first = model.generate(**inputs, past_key_values=cache, max_new_tokens=3, do_sample=False)
    ids = torch.cat([first, more["input_ids"]], dim=1)
    both = model.generate(input_ids=ids, past_key_values=cache, max_new_tokens=3, do_sample=False)

print(processor.decode(both[0], skip_special_tokens=True))
print(handle.stats())
print("positions seen:", cache.get_seq_length(), " entries of layer 0, head 0:", handle.kv_positions(0).shape[2])
