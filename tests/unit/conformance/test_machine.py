"""Passes and operations in drawn orders, of caches that refuse."""

from typing import Any

import pytest
from transformers import DynamicCache

from pressgauge.conformance import architectures
from pressgauge.conformance.machine import run_machine
from pressgauge.conformance.outcomes import Refused
from pressgauge.conformance.subjects import Subject, subject_of


def refusing(longest: int) -> Subject:
    """Subject of a cache that refuses further tokens when it has seen ``longest``."""

    class Refusing(DynamicCache):
        def update(self, key_states: Any, value_states: Any, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
            if self.get_seq_length(layer_idx) + key_states.shape[2] > longest:
                raise ValueError(f"more than {longest} tokens are not supported")
            return super().update(key_states, value_states, layer_idx, *args, **kwargs)

    class Compressor:
        def __init__(self, keep_ratio: float) -> None:
            pass

        def cache(self, config: Any) -> DynamicCache:
            return Refusing()

    return subject_of(
        "refusing", Compressor, {"prune_after": None, "skip_layers": None, "target": lambda seen, held: held}
    )


def test_a_cache_that_refuses_every_prompt_refuses() -> None:
    """If no batch can be started, that is the subject's refusal, and no error of Hypothesis."""
    with pytest.raises(Refused, match="more than 3 tokens are not supported"):
        run_machine(refusing(3), architectures.shared("llama"), batches=False)


def test_a_cache_that_refuses_later_passes_is_judged_until_then() -> None:
    """A batch of which a later pass is refused ends there, and the others are judged."""
    run_machine(refusing(9), architectures.shared("llama"), batches=False)
