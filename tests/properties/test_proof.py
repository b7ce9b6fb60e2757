"""The proof of every pass: each layer passes its tokens, once, to the cache that the model was given."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from pressgauge import KnormPress, VacuousWarning
from pressgauge.conformance import architectures
from pressgauge.conformance.versions import using

PRESS = KnormPress(0.5, prune_after=4)
PASSES = (12, 1, 3, 1)


def untouched(model: Any) -> None:
    """The unmodified model."""


@pytest.mark.parametrize("subject", [untouched], ids=["as it is"])
@torch.no_grad()
def test_every_layer_passes_its_tokens_to_the_cache_and_attends_to_its_result(
    subject: Callable[[Any], None],
) -> None:
    """The proof at the end of each pass raises no error, on a Llama modified by ``subject``."""
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


def test_the_warning_of_a_vacuous_press_points_at_its_with_statement() -> None:
    """The warning that no query met an eviction has the file of the ``with`` statement."""
    model = architectures.build("llama")
    with pytest.warns(VacuousWarning) as caught, PRESS(model):
        model(architectures.tokens(1, 20))
    assert [warning.filename for warning in caught] == [__file__]
