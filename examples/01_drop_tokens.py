"""Put a plugin on an unmodified model, ask it something, and see what was saved."""

from vlm_eff import attach
from vlm_eff.reference import load_reference
from vlm_eff.reference.scenes import make_scene, render
from vlm_eff.tokens import fastv

# any supported model that transformers loads works the same; this one comes along
model, processor = load_reference()
picture = render(make_scene(3, "test"))
text = "user: <image> how many objects are there? assistant:"
inputs = processor(images=picture, text=text, return_tensors="pt")

with attach(model, fastv(layer=2, keep_ratio=0.5)) as handle:
    output = model.generate(**inputs, max_new_tokens=4, do_sample=False)

print(processor.decode(output[0], skip_special_tokens=True))
print(handle.stats())
print("tokens left at the last layer:", len(handle.survivors(model.config.text_config.num_hidden_layers - 1)[0]))
