"""Rules 8 and 11: rows of a batch are independent, and padding has no effect."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pressgauge import KnormPress, PressedCache, replay
from pressgauge.cache import PressedLayer
from pressgauge.conformance import architectures
from pressgauge.conformance.masked_attention import masked_logits
from pressgauge.conformance.oracle import NEVER
from pressgauge.conformance.strategies import key_tensors, ratios
from pressgauge.conformance.subjects import Subject
from pressgauge.conformance.versions import cache_of, using
from support.drive import feed, run

LENGTHS = (3, 17, 64)
NEW = 8


def left_padded(texts: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Texts ``[T_b]`` as one batch ``[B, T]`` and its attention mask."""
    longest = max(len(text) for text in texts)
    ids = torch.stack([torch.cat([text.new_zeros(longest - len(text)), text]) for text in texts])
    mask = torch.stack([torch.arange(longest) >= longest - len(text) for text in texts]).long()
    return ids, mask


def shifted(table: Tensor, padding: int) -> Tensor:
    """Expected ``evicted_at`` of a row after ``padding`` columns of padding."""
    moved = torch.where(table == NEVER, NEVER, table + padding)
    return torch.nn.functional.pad(moved, (padding, 0), value=0)


@pytest.mark.parametrize("architecture", ["neox", "llama"])
def test_rows_of_a_batch_are_independent(subject: Subject, architecture: str) -> None:
    """Rules 8 and 11: rows with prompts of 3, 17 and 64 tokens have the tokens and entries of runs alone."""
    model = architectures.shared(architecture)
    texts = [architectures.tokens(1, length, seed=length)[0] for length in LENGTHS]
    ids, mask = left_padded(texts)
    press = subject(0.5, prune_after=8, recent=1, interval=1 if subject.schedule == "prefill" else 2)
    settings = {"max_new_tokens": NEW, "do_sample": False, "return_dict_in_generate": True}
    with press(model):
        together = model.generate(ids, attention_mask=mask, **settings)
        cache = cache_of(together)
        assert cache.evictions
        for row, text in enumerate(texts):
            alone = model.generate(text[None], attention_mask=torch.ones_like(text)[None], **settings)
            assert together.sequences[row, -NEW:].tolist() == alone.sequences[0, -NEW:].tolist()
            padding = ids.shape[1] - len(text)
            for layer, (table, own) in enumerate(zip(cache.evicted_at, cache_of(alone).evicted_at, strict=True)):
                assert torch.equal(table[row], shifted(own[0], padding))
                assert cache.held_rows(layer)[row] == cache_of(alone).held[layer]
                positions = cache.layers[layer].positions[row]
                kept = cache_of(alone).layers[layer].positions[0]
                assert torch.equal(positions[:, -kept.shape[1] :], kept)
                assert (positions[:, : -kept.shape[1]] == -1).all()


def test_padded_rows_in_chunks_are_independent(subject: Subject) -> None:
    """Rule 11: padded rows are independent in chunks, some of them all padding, and over two turns."""
    model = architectures.shared("llama")
    passes = [10, 10, 10, 1, 1, 7, 1, 1]
    texts = [architectures.tokens(1, length, seed=length)[0] for length in (15, 26, 41)]
    ids, mask = left_padded(texts)
    # At the first evictions from other rows, the shortest row has fewer tokens than are protected.
    press = subject(0.5, prune_after=7, recent=7)
    together = run(model, press, ids, passes, mask=mask, prompt_length=30)
    for row, text in enumerate(texts):
        padding = ids.shape[1] - len(text)
        own_passes = []
        start = 0
        for length in passes:
            own = min(length, max(0, start + length - padding))
            start += length
            if own:
                own_passes.append(own)
        alone = run(model, press, text[None], own_passes, prompt_length=30 - padding)
        assert (together.logits[row, padding:] - alone.logits[0]).abs().max() < 1e-10
        for table, own_table in zip(together.cache.evicted_at, alone.cache.evicted_at, strict=True):
            assert torch.equal(table[row], shifted(own_table[0], padding))
    padding_of_rows = (mask == 0).sum(-1).tolist()
    for layer, keys in enumerate(together.keys):
        replayed = replay(press, keys, passes, layer=layer, prompt_length=30, padding=padding_of_rows)
        assert torch.equal(replayed, together.cache.evicted_at[layer])
    expected = masked_logits(model, ids, together.cache.evicted_at, mask)
    real = mask.bool()
    assert (together.logits[real] - expected[real]).abs().max() < 1e-10


def test_permuting_rows_permutes_the_result(subject: Subject) -> None:
    """Rule 8: results do not depend on the order of rows."""
    model = architectures.shared("llama")
    ids = architectures.tokens(3, 20)
    press = subject(0.5, prune_after=4)
    order = [2, 0, 1]
    one, other = run(model, press, ids, [12] + [1] * 8), run(model, press, ids[order], [12] + [1] * 8)
    assert (one.logits[order] - other.logits).abs().max() < 1e-10
    for table, permuted in zip(one.cache.evicted_at, other.cache.evicted_at, strict=True):
        assert torch.equal(table[order], permuted)


@given(data=st.data(), length=st.integers(1, 20))
def test_a_row_does_not_depend_on_the_others(subject: Subject, data: st.DataObject, length: int) -> None:
    """Rule 8: in a plain cache, the history of a row does not depend on the others (S9 of the bug catalogue)."""
    keys = data.draw(key_tensors(length, rows=2))
    press = subject(data.draw(ratios()), prune_after=data.draw(st.integers(0, 8)))
    together = feed(press, keys, [1] * length)
    for row in range(2):
        alone = feed(press, keys[row : row + 1], [1] * length)
        for table, own in zip(together.evicted_at, alone.evicted_at, strict=True):
            assert torch.equal(table[row], own[0])


def test_padding_has_no_effect() -> None:
    """Rule 11: ``seen`` and ``held`` are those of the longest row, and ``held_rows`` those of each row, without
    padding."""
    model = architectures.shared("llama")
    ids, mask = left_padded([architectures.tokens(1, length)[0] for length in (4, 10)])
    press = KnormPress(0.5, prune_after=5, skip_layers=(0,))
    cache: PressedCache = run(model, press, ids, [10], mask=mask).cache
    assert cache.seen == 10
    assert cache.held == [10, 5, 5]
    assert cache.held_rows(0).tolist() == [4, 10]
    assert cache.held_rows(1).tolist() == [4, 5]
    assert (cache.evicted_at[1][0, :, :6] == 0).all()
    layer = cache.layers[1]
    assert isinstance(layer, PressedLayer)
    assert layer.keys is not None
    assert layer.keys.shape[2] == 5
    assert (layer.keys[0, :, :1] == 0).all()


def test_beam_search_works_on_a_compressed_cache(subject: Subject) -> None:
    """Beams and histories are the same attached and as a plain cache."""
    model = architectures.shared("llama")
    ids = architectures.tokens(1, 14)
    settings = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 10, "num_beams": 3, "do_sample": False}
    press = subject(0.5, prune_after=6)
    cache = press.cache(model.config, unpadded=True)
    plain = model.generate(ids, **using(cache), **settings)
    assert cache.evictions
    with press(model):
        attached = model.generate(ids, return_dict_in_generate=True, **settings)
    assert torch.equal(attached.sequences, plain)
    for table, other in zip(cache.evicted_at, cache_of(attached).evicted_at, strict=True):
        assert torch.equal(table, other)


def test_reordered_rows_carry_their_history_along(subject: Subject) -> None:
    """After ``reorder_cache``, a row continues as the row that it is a copy of."""
    model = architectures.shared("llama")
    ids = architectures.tokens(3, 20)
    press = subject(0.5, prune_after=4)
    result = run(model, press, ids[:, :16], [10] + [1] * 6)
    cache = result.cache
    rows = torch.tensor([1, 1, 0])
    cache.reorder_cache(rows)
    with torch.no_grad(), press(model):
        logits = model(ids[rows, 16:], **using(cache)).logits
    whole = run(model, press, ids[rows], [10] + [1] * 6 + [4])
    assert (logits - whole.logits[:, 16:]).abs().max() < 1e-10
    for table, other in zip(cache.evicted_at, whole.cache.evicted_at, strict=True):
        assert torch.equal(table, other)


@pytest.mark.parametrize("change", ["repeat", "select"])
def test_rows_can_be_repeated_and_selected(change: str) -> None:
    """``batch_repeat_interleave`` and ``batch_select_indices`` act on whole rows, as in transformers' caches."""
    model = architectures.shared("llama")
    ids = architectures.tokens(2, 20)
    press = KnormPress(0.5, prune_after=4)
    cache = run(model, press, ids[:, :16], [16]).cache
    if change == "repeat":
        cache.batch_repeat_interleave(2)
        rows = torch.tensor([0, 0, 1, 1])
    else:
        cache.batch_select_indices(torch.tensor([1]))
        rows = torch.tensor([1])
    with torch.no_grad(), press(model):
        logits = model(ids[rows, 16:], **using(cache)).logits
    expected = run(model, press, ids[rows], [16, 4]).logits[:, 16:]
    assert (logits - expected).abs().max() < 1e-10
