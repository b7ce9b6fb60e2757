"""Entries of a layer, in the cases that only one line of code decides."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from pressgauge import H2OPress, KnormPress, Press, PressedCache
from pressgauge.conformance import architectures
from pressgauge.conformance.strategies import LAYERS
from pressgauge.conformance.versions import cache_of, using
from pressgauge.presses.attention_scores import Votes
from support.accelerator import accelerator
from support.drive import CONFIG, values_of

SEEN: list[int] = []
"""Numbers of entries that ``Counting`` was given."""


@dataclass(frozen=True)
class Counting(Press):
    """Retains the first tokens, and notes how many entries it scores."""

    fixed_scores: ClassVar[bool] = True

    def score(self, keys: Tensor, *, positions: Tensor, layer: int, votes: Votes | None = None) -> Tensor:
        assert keys.shape[:3] == positions.shape
        if layer == 0:
            SEEN.append(keys.shape[2])
        return -positions


def fed(press: Press, keys: Tensor, *lengths: int) -> PressedCache:
    """A plain cache after passes of these lengths."""
    cache = PressedCache(press, CONFIG, unpadded=True)
    for length in lengths:
        feed(cache, keys, length, *range(LAYERS))
    return cache


@torch.no_grad()
def feed(cache: PressedCache, keys: Tensor, length: int, *layers: int) -> None:
    """One more pass, through these layers."""
    start = cache.layers[layers[0]].get_seq_length()
    part = keys[:, :, start : start + length]
    for layer in layers:
        cache.update(part, values_of(part), layer)


def test_a_press_scores_entries_only_and_each_once() -> None:
    """Slots in reserve are not scored, and neither are entries that were scored before, if scores are fixed."""
    keys = torch.randn(1, 2, 140, 4, generator=torch.Generator().manual_seed(0))
    SEEN.clear()
    cache = fed(Counting(0.5, prune_after=100), keys, 120, 1)
    assert cache.held == [100, 100]
    feed(cache, keys, 1, *range(LAYERS))
    assert cache.layers[0].storage["keys"].shape[2] == 102
    feed(cache, keys, 3, *range(LAYERS))
    assert cache.held == [100, 100]
    assert [120, *SEEN[-3:]] == [SEEN[0], 1, 1, 3]


def test_layers_are_on_the_device_of_their_keys() -> None:
    """Entries, positions and history, before and after evictions, equal those on the CPU."""
    keys = torch.randn(1, 2, 20, 4, generator=torch.Generator().manual_seed(0))
    press = KnormPress(0.5, prune_after=4)
    expected = fed(press, keys, 8, 1, 3, 1)
    with accelerator() as device:
        cache = fed(press, keys.to(device), 8, 1, 3, 1)
        for layer, own in zip(cache.layers, expected.layers, strict=True):
            for name in ("keys", "values", "positions", "evicted_at"):
                found = getattr(layer, name)
                assert found.device == device
                assert torch.equal(found.cpu(), getattr(own, name))
        assert all(table.device == device for table in cache.evicted_at)
        skipping = fed(KnormPress(0.5, prune_after=4, skip_layers=(1,)), keys.to(device), 8, 1)
        assert all(table.device == device for table in skipping.evicted_at)


def padded(keys: Tensor) -> tuple[PressedCache, Tensor | None]:
    """A cache of an attached press whose second row has 2 columns of padding, and the mask of its last pass."""
    cache = PressedCache(KnormPress(0.5, prune_after=4), CONFIG)
    cache.attached = [0, 2]
    for length in (8, 3):
        feed(cache, keys, length, 0)
        mask = cache.layers[0].mask(length) if length == 3 else None
        cache.layers[0].settle()
        feed(cache, keys, length, 1)
        cache.layers[1].settle()
    return cache, mask


def test_padding_and_masks_are_on_the_device_of_the_keys() -> None:
    """Positions and masks of padded rows equal those on the CPU."""
    keys = torch.randn(2, 2, 20, 4, generator=torch.Generator().manual_seed(0))
    expected, own = padded(keys)
    with accelerator() as device:
        cache, mask = padded(keys.to(device))
        assert mask is not None
        assert own is not None
        assert mask.device == device
        assert torch.equal(mask.cpu(), own)
        for layer, other in zip(cache.layers, expected.layers, strict=True):
            assert torch.equal(layer.positions.cpu(), other.positions)
            assert torch.equal(layer.keys.cpu(), other.keys)
            assert torch.equal(layer.evicted_at.cpu(), other.evicted_at)
        fresh = PressedCache(KnormPress(0.5, prune_after=16), CONFIG)
        feed(fresh, keys.to(device), 8, 0, 1)
        assert all(table.device == device for table in fresh.evicted_at)
        cache.attached = None
        cache.batch_select_indices(torch.tensor([1]))
        assert all(layer.keys.device == device for layer in cache.layers)


def test_a_crop_into_an_interrupted_pass_leaves_it_interrupted() -> None:
    """Layers that the pass did not reach hold what they held, and the next pass is refused."""
    keys = torch.randn(1, 2, 20, 4, generator=torch.Generator().manual_seed(0))
    cache = fed(KnormPress(0.5, prune_after=16), keys, 8)
    feed(cache, keys, 3, 0)
    cache.crop(-1)
    assert [layer.columns for layer in cache.layers] == [10, 8]
    assert [layer.used for layer in cache.layers] == [10, 8]
    with pytest.raises(RuntimeError, match=r"^an earlier pass through this cache was interrupted: "):
        feed(cache, keys, 1, 0)


def test_parts_of_an_attached_pass_are_handed_over_together() -> None:
    """Attention reads the keys and values of all parts that a layer's pass was given in."""
    keys = torch.randn(1, 2, 20, 4, generator=torch.Generator().manual_seed(0))
    cache = PressedCache(KnormPress(0.5, prune_after=16), CONFIG)
    cache.attached = [0]
    feed(cache, keys, 5, 0)
    feed(cache, keys, 3, 1)
    feed(cache, keys, 2, 1)
    handed = cache.layers[1].handed
    assert handed.tokens == 5
    assert torch.equal(handed.keys, keys[:, :, :5])


@torch.no_grad()
def test_attention_state_is_freed_after_the_last_eviction() -> None:
    """Once a press that evicts after the prompt has evicted, a cache remembers positions only."""
    model = architectures.shared("llama")
    cache = DynamicCache(config=model.config)
    ids = architectures.tokens(1, 14)
    with H2OPress(0.5, prune_after=4, schedule="prefill")(model):
        for part in ids.split([12, 1, 1], dim=1):
            model(part, **using(cache))
    assert isinstance(cache, PressedCache)
    for layer in cache.pressed:
        assert layer.overhead_nbytes == layer.storage.nbytes("positions") > 0


@pytest.mark.parametrize("stored", [False, True], ids=["new keys", "stored keys"])
def test_what_a_backward_pass_needs_is_not_written_to(stored: bool) -> None:
    """Gradients reach the keys of a pass that needs them, whether they are new or stored, after further passes."""
    keys = torch.randn(1, 2, 130, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found: list[Tensor] = []
    for skipped in ((), (0,)):
        press = KnormPress(0.5, prune_after=100, interval=4, skip_layers=skipped)
        cache = fed(press, keys, 120)
        part = keys[:, :, 120:121].clone().requires_grad_()
        total = torch.zeros((), dtype=torch.float64)
        for step in range(4):
            states = part if (step == 0) is stored else keys[:, :, 121 + step : 122 + step]
            read, _ = cache.update(states, values_of(states), 0)
            total = total + read[:, :, -1].square().sum() * (step + 1)
            cache.update(states.detach(), values_of(states), 1)
        total.backward()
        assert part.grad is not None
        found.append(part.grad)
    assert torch.equal(found[0], found[1])


@torch.no_grad()
def test_rows_change_places_with_their_attention_scores() -> None:
    """After rows change places, a press that ranks by attention evicts from each what it evicts from it alone."""
    model = architectures.shared("llama")
    ids = architectures.tokens(2, 18)
    press = H2OPress(0.5, prune_after=4)
    caches = DynamicCache(config=model.config), DynamicCache(config=model.config)
    with press(model):
        model(ids[:, :12], **using(caches[0]))
        caches[0].reorder_cache(torch.LongTensor([1, 0]))
        model(ids.flip(0)[:, :12], **using(caches[1]))
        for column in range(12, 18):
            for cache in caches:
                model(ids.flip(0)[:, column : column + 1], **using(cache))
    first, second = caches
    assert isinstance(first, PressedCache)
    assert isinstance(second, PressedCache)
    assert all(map(torch.equal, first.evicted_at, second.evicted_at))


KEYS_AT_PADDING: list[float] = []
"""Largest entry of keys at padding slots, per layer and scoring."""


@dataclass(frozen=True)
class Looking(Press):
    """Retains the first tokens, and notes the keys at padding slots."""

    def score(self, keys: Tensor, *, positions: Tensor, layer: int, votes: Votes | None = None) -> Tensor:
        padding = keys[positions < 0]
        KEYS_AT_PADDING.append(float(padding.abs().max()) if padding.numel() else -1)
        return -positions


@pytest.mark.parametrize("name", ["llama", "gemma3"])
@pytest.mark.parametrize("prompt", [20, 6])
def test_keys_at_padding_slots_are_zero_whenever_a_press_scores(name: str, prompt: int) -> None:
    """As ``Press.score`` says, at the first eviction and later ones, also if a row's padding ends in a later pass."""
    model = architectures.shared(name)
    ids = torch.randint(4, 20, (2, 26), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, :9] = 0
    KEYS_AT_PADDING.clear()
    with Looking(0.5, prune_after=3, skip_layers=())(model), torch.no_grad():
        cache = None
        for start, stop in ((0, prompt), (prompt, 22), (22, 23), (23, 26)):
            given: dict[str, object] = {} if cache is None else using(cache)
            places = mask.cumsum(-1).sub(1).clamp(min=0)[:, start:stop]
            step = model(ids[:, start:stop], attention_mask=mask[:, :stop], position_ids=places, **given)
            cache = cache_of(step)
    assert KEYS_AT_PADDING.count(0) >= 2
    assert max(KEYS_AT_PADDING) == 0
