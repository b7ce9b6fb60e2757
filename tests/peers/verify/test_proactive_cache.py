"""proactive-cache 0.3.1: ``ProactiveCache.apply(model, budget=...)``, then ``generate``."""

from pathlib import Path

import pytest
from proactive_cache import ProactiveCache
from proactive_cache.eviction import score_tokens, select_indices

from peers.verify.plain import crashing, llama, still, tokens


def test_generate_dies_where_the_prompt_exceeds_the_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The documented call, with a prompt longer than the budget."""
    monkeypatch.chdir(tmp_path)
    model = ProactiveCache.apply(llama(), budget=16)
    assert model.generate(tokens(12), max_new_tokens=2).shape[1] == 14
    with crashing(Exception, right="44 tokens"):
        model.generate(tokens(40), max_new_tokens=4)


def test_sinks_are_evicted_at_tiny_budgets() -> None:
    """Recent tokens get half the score of sinks, and a budget below 12 holds 8 recent tokens."""
    held = select_indices(score_tokens(None, 40, 3), 3)
    sinks = [token for token in held if token < 4]
    still(len(sinks) == 3 or held[0] > 3, f"a budget of 3 retains {held}", "4 sinks are securely held")
