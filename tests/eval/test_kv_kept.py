"""What a policy leaves of a prompt: against the cache of a model that really ran with it, and against its bytes."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from vlm_eff import attach
from vlm_eff.core.cache import IMAGE, TEXT
from vlm_eff.core.plugin import Plugin
from vlm_eff.core.report import VisualTokens
from vlm_eff.eval import kv_kept
from vlm_eff.eval.kv_kept import LayerKept, PromptKept, kept_and_errors
from vlm_eff.eval.subject import Subject
from vlm_eff.kvcache import adakv, kivi, random_evict, snapkv

QUESTION = "is there a circle?"
PICTURE = Image.radial_gradient("L").resize((96, 96)).convert("RGB")


def measured(subject: Subject, *plugins: Plugin) -> PromptKept:
    inputs = subject.inputs([PICTURE], QUESTION)
    return kept_and_errors(subject.model, inputs, {"all": plugins}, steps=2)[1]["all"]


def stored(subject: Subject, plugin: Plugin) -> list[list[set[int]]]:
    """Positions of the prompt that a real run stores behind its first decode step, by layer and head."""
    inputs = subject.inputs([PICTURE], QUESTION)
    length = inputs["input_ids"].shape[1]
    with attach(subject.model, plugin) as handle, torch.inference_mode():
        subject.model.generate(**inputs, do_sample=False, max_new_tokens=2, min_new_tokens=2)
        return [
            [{place for place in head.tolist() if 0 <= place < length} for head in handle.kv_positions(layer)[0]]
            for layer in range(8)
        ]


def there(kept: PromptKept) -> list[list[set[int]]]:
    return [[set(head.nonzero().flatten().tolist()) for head in layer.bits] for layer in kept.layers]


@pytest.mark.parametrize("plugin", [snapkv(keep_ratio=0.3), adakv(keep_ratio=0.3)], ids=lambda plugin: plugin.name)
def test_kept_entries_are_those_of_a_run(subject: Subject, plugin: Plugin, monkeypatch: pytest.MonkeyPatch) -> None:
    real = stored(subject, plugin)
    assert there(measured(subject, plugin)) == real
    made = kv_kept._layer_kept

    def shifted(*given: object) -> LayerKept:
        right = made(*given)  # type: ignore[arg-type]
        return LayerKept(right.layer, right.bits.roll(1, 1), right.bytes, right.bytes_bare)

    monkeypatch.setattr(kv_kept, "_layer_kept", shifted)
    assert there(measured(subject, plugin)) != real


def test_keeping_everything_keeps_all_bits_and_bytes(subject: Subject) -> None:
    kept = measured(subject, random_evict(keep_ratio=1.0))
    assert not kept.packed and kept.full_bits == 32
    assert kept.mean_bits("text") == kept.mean_bits("visual") == (32.0,) * 8
    assert kept.share("text").tolist() == kept.share("visual").tolist() == [[1.0]] * 8
    assert [layer.bytes for layer in kept.layers] == [layer.bytes_bare for layer in kept.layers]


def test_bits_account_for_the_bytes(subject: Subject) -> None:
    kept = measured(subject, kivi(bits=2, residual=16, group=16))
    assert kept.packed
    for layer in kept.layers:
        entries = int((layer.bits > 0).sum())
        assert entries == layer.bits.numel()
        # what is left over are the positions: 4 bytes an entry
        contents = float(layer.bits.sum()) * 2 * 16 / 8
        assert 0 <= layer.bytes - contents - 4 * entries < 64
        assert layer.bytes < layer.bytes_bare / 2


def test_heads_and_modalities_are_told_apart() -> None:
    bits = torch.tensor([[32.0, 0, 32, 0], [32, 4, 0, 0]])
    kept = PromptKept(torch.tensor([TEXT, IMAGE, IMAGE, TEXT], dtype=torch.int8), (LayerKept(3, bits, 8, 16),), 32)
    assert kept.share("text").tolist() == [[0.5, 0.5]] and kept.share("visual").tolist() == [[0.5, 0.5]]
    assert kept.mean_bits("visual") == (18.0,) and kept.packed
    slot = torch.tensor([1, 2])
    tokens = VisualTokens(slot, slot * 0, slot * 0, slot * 0, slot - 1, slot > 0, slot * 1.0)
    both, clear = kept.cells(tokens, 0, None)
    assert both.kept.tolist() == [True, True] and clear.tolist() == [4 / 64, 0.5]
    second, clear = kept.cells(tokens, 0, 1)
    assert second.kept.tolist() == [True, False] and clear.tolist() == [4 / 32, 0.0]
    nothing = PromptKept(kept.modality, (LayerKept(0, bits * 0, 0, 16),), 32)
    assert nothing.mean_bits("text") == (None,) and not nothing.packed
