"""Broken implementations of ``watch``, each of which a named test must catch by its own assertion."""

from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from pressgauge.observation import readings, recorder, tally
from pressgauge.observation.readings import Reader, Reading
from pressgauge.observation.recorder import Recorder
from pressgauge.observation.tally import Tally
from properties import test_watch

Patch = Callable[[pytest.MonkeyPatch], None]


def counts_the_pass_after_its_own_eviction(patch: pytest.MonkeyPatch) -> None:
    """Takes what a cache holds after a pass for what its queries met."""
    own = Tally.add

    def add(self: Tally, record: Any) -> None:
        if record.end is not None and not record.failed:
            record.start = record.end
            record.track.columns += record.tokens
        own(self, record)

    patch.setattr(Tally, "add", add)
    patch.setattr(tally, "locate", lambda record, track, start: None)


def looks_at_the_first_layer_only(patch: pytest.MonkeyPatch) -> None:
    own = Reader._read
    patch.setattr(Reader, "_read", lambda self, cache: _first_only(own(self, cache)))


def _first_only(reading: Reading) -> Reading:
    reading.held[1:] = reading.held[:1] * (len(reading.held) - 1)
    return reading


def forgets_that_a_pass_may_have_no_cache(patch: pytest.MonkeyPatch) -> None:
    """Counts a pass without a cache to an empty one of its own."""
    own = Recorder._after

    def after(self: Recorder, module: Any, args: Any, kwargs: Any, output: Any) -> None:
        own(self, module, args, kwargs, output)
        for record in self._queue:
            if record.end is None:
                record.end = Reading([record.tokens] * 3)

    patch.setattr(Recorder, "_after", after)


def counts_allocated_slots(patch: pytest.MonkeyPatch) -> None:
    own = Reading.complete

    def complete(self: Reading) -> None:
        slots = self.preallocated
        own(self)
        for layer, size, _ in slots:
            self.held[layer] = size

    patch.setattr(Reading, "complete", complete)


def counts_what_is_not_quantised_yet(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(readings, "_quantized", readings._plain)


def counts_padding(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Recorder, "_read_mask", lambda self, record, mask: None)


def takes_a_window_for_an_eviction(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Tally, "__init__", _without_windows(Tally.__init__))


def _without_windows(own: Callable[..., None]) -> Callable[..., None]:
    return lambda self, windows: own(self, [])


def takes_a_crop_for_an_eviction(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(tally, "_changed", lambda record, track, before, now: None)


def takes_any_shrinking_for_a_crop(patch: pytest.MonkeyPatch) -> None:
    def changed(record: Any, track: Any, before: Any, now: Any) -> None:
        track.columns -= max(old - new for old, new in zip(before, now, strict=True))

    patch.setattr(tally, "_changed", changed)


def forgets_a_reset(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Reading, "empty", property(lambda self: False))


def guesses_what_it_cannot_know(patch: pytest.MonkeyPatch) -> None:
    own = tally.locate

    def locate(record: Any, track: Any, start: Any) -> None:
        own(record, track, start)
        track.known = True

    patch.setattr(tally, "locate", locate)


def believes_that_models_count_right(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(recorder, "_position", lambda cache: None)


def hooks_the_outer_model_only(patch: pytest.MonkeyPatch) -> None:
    own = Recorder.__init__

    def begin(self: Recorder, model: Any) -> None:
        own(self, model)
        self.decoder, self.hosts = model, []

    patch.setattr(Recorder, "__init__", begin)


def counts_logits_that_were_not_kept(patch: pytest.MonkeyPatch) -> None:
    own = Recorder._leave

    def leave(self: Recorder, *args: Any) -> None:
        own(self, *args)
        if self._latest is not None and self._latest.logits is not None:
            self._latest.logits = range(self._latest.tokens)

    patch.setattr(Recorder, "_leave", leave)


def lets_a_cache_evict_early(patch: pytest.MonkeyPatch) -> None:
    own = Reader._read

    def read(self: Reader, cache: Any) -> Reading:
        for layer in getattr(cache, "pressed", ()):
            layer.settle()
        return own(self, cache)

    patch.setattr(Reader, "_read", read)


def keeps_caches_alive(patch: pytest.MonkeyPatch) -> None:
    own, kept = Recorder._follow, []

    def follow(self: Recorder, cache: Any, track: Any) -> None:
        kept.append(cache)
        own(self, cache, track)

    patch.setattr(Recorder, "_follow", follow)


def measures_a_cache_at_its_prompt_only(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Recorder, "_measure", lambda self, track: None)


def measures_entries_rather_than_storages(patch: pytest.MonkeyPatch) -> None:
    def entries(cache: Any) -> int:
        layers = getattr(cache, "layers", cache) or []
        return sum(t.numel() * t.element_size() for layer in layers for t in (layer.keys, layer.values))

    patch.setattr(recorder, "nbytes", entries)


def looks_at_the_cache_and_not_at_what_one_pass_replays(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(recorder, "OnePassCache", type("Never", (), {}))


def trusts_kvpress_to_shorten_the_cache(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(recorder, "_masks_heads", lambda attention: False)


def leaves_hooks(patch: pytest.MonkeyPatch) -> None:
    own = Recorder.hooks

    @contextmanager
    def hooks(self: Recorder) -> Any:
        self.decoder.register_forward_pre_hook(lambda *_: None)
        with own(self):
            yield

    patch.setattr(Recorder, "hooks", hooks)


def counts_on_after_it_closed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Recorder, "__deepcopy__", lambda self, memo: self)


def counts_rows_together(patch: pytest.MonkeyPatch) -> None:
    """Takes the longest row's tokens for those of all rows."""
    own = Tally._tokens_before

    def before(self: Tally, record: Any, track: Any, fed: Any) -> list[int]:
        tokens = own(self, record, track, fed)
        return [max(tokens)] * len(tokens)

    patch.setattr(Tally, "_tokens_before", before)


def changes_results(patch: pytest.MonkeyPatch) -> None:
    """Draws a random number in each pass."""
    own = Recorder._before

    def before(self: Recorder, *args: Any) -> None:
        torch.rand(1)
        own(self, *args)

    patch.setattr(Recorder, "_before", before)


MUTANTS: list[tuple[Patch, Callable[[], None]]] = [
    (counts_the_pass_after_its_own_eviction, test_watch.test_generation_under_an_attached_press),
    (looks_at_the_first_layer_only, lambda: test_watch.test_a_compressor_in_hooks_of_attention((2,))),
    (forgets_that_a_pass_may_have_no_cache, test_watch.test_a_pass_without_a_cache_meets_nothing),
    (counts_allocated_slots, test_watch.test_a_compressor_of_a_static_cache),
    (counts_what_is_not_quantised_yet, test_watch.test_quantised_entries_are_entries),
    (counts_padding, test_watch.test_padding_is_not_counted),
    (counts_rows_together, test_watch.test_a_cache_that_loses_only_padding_is_not_said_to_lose_entries),
    (takes_a_window_for_an_eviction, test_watch.test_a_sliding_window_is_no_eviction),
    (takes_a_crop_for_an_eviction, test_watch.test_a_crop_is_no_eviction),
    (takes_any_shrinking_for_a_crop, test_watch.test_an_eviction_between_passes_is_told_from_a_crop),
    (forgets_a_reset, lambda: test_watch.test_a_reset_begins_anew("plain")),
    (guesses_what_it_cannot_know, test_watch.test_a_cache_that_was_fed_before_the_watch),
    (believes_that_models_count_right, test_watch.test_positions_counted_by_entries_are_wrong),
    (hooks_the_outer_model_only, test_watch.test_the_decoder_may_be_called_by_itself),
    (counts_logits_that_were_not_kept, lambda: test_watch.test_logits_that_a_pass_returned(1, 2)),
    (lets_a_cache_evict_early, test_watch.test_reading_a_plain_cache_does_not_evict_early),
    (keeps_caches_alive, test_watch.test_no_cache_is_kept_alive),
    (measures_a_cache_at_its_prompt_only, test_watch.test_no_cache_is_kept_alive),
    (measures_entries_rather_than_storages, test_watch.test_bytes_are_those_of_the_storages),
    (
        looks_at_the_cache_and_not_at_what_one_pass_replays,
        lambda: test_watch.test_perplexity_says_the_same("onepass", 1),
    ),
    (leaves_hooks, test_watch.test_the_model_is_as_it_was),
    (counts_on_after_it_closed, test_watch.test_a_closed_watch_no_longer_counts),
    (changes_results, lambda: test_watch.test_no_bit_changes("neox", "plain")),
]


@pytest.mark.parametrize(("mutant", "test"), MUTANTS, ids=[mutant.__name__ for mutant, _ in MUTANTS])
def test_a_broken_watch_is_caught(mutant: Patch, test: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """The test holds for the implementation, and its own assertion fails for the mutant."""
    test()
    mutant(monkeypatch)
    with pytest.raises(AssertionError):
        test()


def test_masked_heads_that_are_not_looked_for_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """As above, for a test that patches by itself."""
    trusts_kvpress_to_shorten_the_cache(monkeypatch)
    with pytest.raises(AssertionError):
        test_watch.test_masked_heads_are_evictions(monkeypatch)
