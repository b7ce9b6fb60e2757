"""A press that closes after passes of which none met an eviction warns, since nothing of it was measured."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
from transformers import DynamicCache

from pressgauge import H2OPress, KnormPress, VacuousWarning, generate, perplexity
from pressgauge.conformance.architectures import Model, shared, tokens
from pressgauge.conformance.versions import using
from pressgauge.timing import measure_timing

PRESS = KnormPress(keep_ratio=0.5, prune_after=8)


def once(model: Model) -> None:
    model(tokens(1, 20))


def twice(model: Model) -> None:
    """Two texts, each in one pass."""
    once(model)
    once(model)


def too_short(model: Model) -> None:
    """Never more entries than ``prune_after``."""
    model.generate(tokens(1, 4), max_new_tokens=5, do_sample=False)


@pytest.mark.parametrize(("body", "passes"), [(once, "1 pass"), (twice, "2 passes"), (too_short, "5 passes")])
@pytest.mark.parametrize("kind", [KnormPress, H2OPress])
def test_passes_that_met_no_eviction(kind: Any, body: Callable[[Model], None], passes: str) -> None:
    """One warning, with what was done, what it means, and what to do instead."""
    model = shared("llama")
    with pytest.warns(VacuousWarning) as caught, kind(keep_ratio=0.5, prune_after=8)(model):
        body(model)
    (warning,) = caught
    assert str(warning.message) == (
        f"{kind.__name__}(keep_ratio=0.5, prune_after=8) was attached for {passes} and no query met an eviction, so "
        "what was measured is the uncompressed model: feed tokens after the prompt, more than 8 in all, or use "
        "pressgauge.perplexity"
    )


def generated(model: Model) -> None:
    model.generate(tokens(1, 20), max_new_tokens=2, do_sample=False)


def fed(model: Model) -> None:
    cache = DynamicCache(config=model.config)
    for length in (20, 1):
        model(tokens(1, length), **using(cache))


def both(model: Model) -> None:
    fed(model)
    once(model)


@pytest.mark.parametrize("body", [generated, fed, both, lambda model: None])
def test_passes_that_met_one(body: Callable[[Model], None]) -> None:
    """One query that met an eviction is enough, and where nothing was fed nothing was measured."""
    model = shared("llama")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with PRESS(model):
            body(model)


def test_a_press_that_retains_everything() -> None:
    """At a keep ratio of 1 there is nothing to evict."""
    model = shared("llama")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with KnormPress(keep_ratio=1, prune_after=8)(model):
            once(model)


def test_a_press_that_skips_all_layers() -> None:
    """No layer evicts, whatever the budget says."""
    model = shared("llama")
    with pytest.warns(VacuousWarning), KnormPress(0.5, 8, skip_layers=(0, 1, 2))(model):
        generated(model)


def test_an_error_is_not_followed_by_a_warning() -> None:
    """Neither where the body fails nor where a pass does."""
    model = shared("llama")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(KeyError), PRESS(model):  # noqa: PT012  # the pass is what would be warned of
            once(model)
            raise KeyError
        with PRESS(model), pytest.raises(ValueError, match="use_cache=False"):
            model(tokens(1, 20), use_cache=False)


def test_a_cache_that_was_compressed_before() -> None:
    """A pass may meet what an earlier context evicted."""
    model, cache = shared("llama"), DynamicCache(config=shared("llama").config)
    with pytest.warns(VacuousWarning), PRESS(model):
        model(tokens(1, 20), **using(cache))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with PRESS(model):
            model(tokens(1, 3), **using(cache))


def test_our_own_functions_do_not_warn() -> None:
    """Their results say what was evicted; afterwards, warnings are on again."""
    model, ids, long = shared("llama"), tokens(1, 6), tokens(1, 20)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        generate(model, long, PRESS, 1)
        assert perplexity(model, ids, PRESS, method="stepwise").vacuous
        assert perplexity(model, ids, PRESS).vacuous
        measure_timing(model, ids, PRESS, 2, pairs=2)
    with pytest.warns(VacuousWarning), PRESS(model):
        once(model)
