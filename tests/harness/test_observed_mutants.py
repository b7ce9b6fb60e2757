"""Broken stepwise measurements, each of which a named test must catch by its own assertion."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pressgauge.bench import observed
from pressgauge.bench.compressors import Failed
from pressgauge.conventions.adapter import Adapter
from pressgauge.conventions.adapters import CacheAdapter, InstanceAdapter
from pressgauge.conventions.state import Snapshot
from pressgauge.models import interface
from pressgauge.observation import Seen
from properties import test_observed as laws

Patch = Callable[[pytest.MonkeyPatch], None]


def feeding(patch: pytest.MonkeyPatch, feed: Callable[..., Any]) -> None:
    """Replace what feeds a pass, in this measurement only."""
    patch.setattr(observed, "interface", SimpleNamespace(**{**vars(interface), "feed": feed}))


def forgets_the_first_pass(patch: pytest.MonkeyPatch) -> None:
    """The prompt is fed without the cache."""
    feeding(
        patch,
        lambda model, ids, cache, mask=None, positions=None: interface.feed(
            model, ids, cache if ids.shape[1] == 1 else {}, mask, positions
        ),
    )


def feeds_the_prompt_singly(patch: pytest.MonkeyPatch) -> None:
    def feed(model: Any, ids: Any, cache: Any, mask: Any = None, positions: Any = None) -> Any:
        parts = zip(ids.split(1, dim=1), positions.split(1, dim=1), strict=True)
        return torch.cat([interface.feed(model, part, cache, mask, own) for part, own in parts], dim=1)

    feeding(patch, feed)


def counts_positions_by_entries(patch: pytest.MonkeyPatch) -> None:
    def feed(model: Any, ids: Any, cache: Any, mask: Any = None, positions: Any = None) -> Any:
        (own,) = cache.values() or (None,)
        held = own.layers[0].keys.shape[2] if own is not None and own.layers and own.layers[0].is_initialized else 0
        return interface.feed(model, ids, cache, mask, held + torch.arange(ids.shape[1])[None])

    feeding(patch, feed)


def scores_the_token_that_is_fed(patch: pytest.MonkeyPatch) -> None:
    own = vars(observed)["score"]
    fed: list[Any] = []

    def feed(model: Any, ids: Any, *given: Any) -> Any:
        fed[:] = [ids[:, -1:]]
        return interface.feed(model, ids, *given)

    feeding(patch, feed)
    patch.setattr(observed, "score", lambda logits, targets: own(logits, fed[0]))


def shares_a_cache(kind: type[Adapter]) -> Patch:
    def breaks(patch: pytest.MonkeyPatch) -> None:
        own = kind.start
        made: dict[tuple[Any, ...], Any] = {}

        def start(self: Any) -> Any:
            # Each sample has an adapter of its own.
            return made.setdefault((type(self), id(self.model)), own(self))

        patch.setattr(kind, "start", start)

    breaks.__name__ = f"feeds_two_samples_through_one_cache_{kind.kind}"
    return breaks


def counts_a_query_that_evicts(patch: pytest.MonkeyPatch) -> None:
    """A query counts as affected if entries are missing after its pass."""
    own = observed._sample

    def sample(*given: Any) -> Any:
        found = own(*given)
        found.affected[:] = [*found.affected[1:], True]
        return found

    patch.setattr(observed, "_sample", sample)


def counts_every_query(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Seen, "affected_queries", property(lambda self: self.tokens))


def counts_none(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Seen, "affected_queries", property(lambda self: 0))


def takes_unreadable_for_unaffected(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Seen, "unreadable_queries", property(lambda self: 0))


def takes_rounding_for_compression(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(observed, "ROUNDING", 0)


def overlooks_what_is_altered(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(observed, "ROUNDING", float("inf"))


def does_not_compress(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(observed, "_compress", lambda adapter, cache: None)


def says_nothing_of_places(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(observed._Progress, "__str__", lambda self: "somewhere")


def undoes_nothing(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Snapshot, "restore", lambda self: None)
    patch.setattr(observed, "Changed", Failed)


def looks_for_nothing_left(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Snapshot, "difference", lambda self: "")


def _digits(convention: str, prompt: int = 1, schedule: str = "budget") -> Callable[[], None]:
    return lambda: laws.test_a_press_in_any_convention_gives_the_digits_of_one_pass(
        convention, "knorm", schedule, prompt
    )


def _left(*, fails: bool) -> None:
    what = "module model.layers.0.self_attn has changed"
    laws.test_what_is_left_in_a_model_is_undone(laws.attribute_left, what, fails)


MUTANTS: list[tuple[Patch, Callable[[], None]]] = [
    (forgets_the_first_pass, lambda: laws.test_a_window_is_measured_as_masked_attention_computes_it(20)),
    (feeds_the_prompt_singly, _digits("context", 20, "prefill")),
    (counts_positions_by_entries, _digits("cache")),
    (scores_the_token_that_is_fed, _digits("patch")),
    (shares_a_cache(CacheAdapter), _digits("cache")),
    (shares_a_cache(InstanceAdapter), laws.test_samples_do_not_share_anything),
    (counts_a_query_that_evicts, _digits("instance")),
    (counts_every_query, lambda: laws.test_a_window_is_measured_as_masked_attention_computes_it(1)),
    (counts_none, laws.test_a_function_over_the_cache_is_measured),
    (takes_unreadable_for_unaffected, laws.test_what_cannot_be_read_is_missing),
    (
        takes_rounding_for_compression,
        lambda: laws.test_a_cache_that_does_nothing_is_vacuous(laws.static_cache, "float32"),
    ),
    (overlooks_what_is_altered, lambda: laws.test_a_cache_that_changes_entries_is_altered_and_not_vacuous("float32")),
    (looks_for_nothing_left, lambda: _left(fails=False)),
    (undoes_nothing, lambda: _left(fails=True)),
    (does_not_compress, laws.test_a_function_over_the_cache_is_measured),
]


@pytest.mark.parametrize(("mutant", "test"), MUTANTS, ids=[mutant.__name__ for mutant, _ in MUTANTS])
def test_a_broken_measurement_is_caught(
    mutant: Patch, test: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test holds for the implementation, and its own assertion fails for the mutant."""
    test()
    mutant(monkeypatch)
    try:
        with pytest.raises(AssertionError):
            test()
    finally:
        # A mutant may have left it changed.
        laws.own_model.cache_clear()


def test_a_failure_without_a_place_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """As above, for a test of a message."""
    says_nothing_of_places(monkeypatch)
    with pytest.raises(AssertionError):
        laws.test_a_failure_says_where()
