"""Laws leave models and transformers as they were, whatever a subject does in a pass."""

from typing import Any

import pytest
from transformers import DynamicCache

from harness.mutants.right_quantised import EVICTS_NOTHING
from pressgauge.conformance import architectures, guard
from pressgauge.conformance.subjects import Subject, subject_of
from support.laws import LAWS, judged, words


def failing(pass_: int, error: type[Exception], quantised: bool) -> Subject:
    """Subject of a cache whose last layer fails in a pass, the first of which is 0."""

    class Failing(DynamicCache):
        passes = -1

        def update(self, key_states: Any, value_states: Any, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
            self.passes += layer_idx == 0
            if self.passes >= pass_ and layer_idx == architectures.LAYERS - 1:
                raise error("a bug of the subject")
            return super().update(key_states, value_states, layer_idx, *args, **kwargs)

    class Compressor:
        def __init__(self, keep_ratio: float) -> None:
            pass

        def cache(self, config: Any) -> DynamicCache:
            return Failing()

    declares = {name: value for name, value in EVICTS_NOTHING.items() if name != "read"}
    if not quantised:
        del declares["entries"]
    return subject_of("failing", Compressor, declares)


@pytest.mark.parametrize(
    ("pass_", "error", "quantised"), [(1, IndexError, False), (5, IndexError, False), (5, RuntimeError, True)]
)
def test_a_subject_that_fails_leaves_no_hooks(pass_: int, error: type[Exception], quantised: bool) -> None:
    """After each law on a subject that crashes or refuses in its first or in a later pass, every shared model and all
    functions of transformers are as they were."""
    subject, guilty = failing(pass_, error, quantised), {}
    guard.changed(everywhere=True)
    for law in LAWS.values():
        judged(law, subject)
        if changed := guard.changed(everywhere=True):
            guilty[words(law)] = changed
            break
    assert guilty == {}
