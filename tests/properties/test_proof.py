"""What a press relies on: a model hands every layer's tokens, once, to the cache that it is given."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from pressgauge import KnormPress
from pressgauge.conformance import architectures
from pressgauge.conformance.versions import using

PRESS = KnormPress(0.5, prune_after=4)
PASSES = (12, 1, 3, 1)


def untouched(model: Any) -> None:
    """The model of the suite, as it is."""


@pytest.mark.parametrize("subject", [untouched], ids=["as it is"])
@torch.no_grad()
def test_every_layer_hands_its_tokens_to_the_cache_and_attends_to_what_it_returns(
    subject: Callable[[Any], None],
) -> None:
    """The proof at the end of each pass finds nothing; ``subject`` changes a Llama first."""
    model = architectures.build("llama")
    subject(model)
    ids = architectures.tokens(1, sum(PASSES))
    cache = PRESS.cache(model.config)
    try:
        with PRESS(model):
            for part in ids.split(PASSES, dim=1):
                model(part, **using(cache))
    except ValueError as refusal:
        raise AssertionError(str(refusal)) from refusal
