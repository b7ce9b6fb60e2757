"""The guard finds out who changes a model that tests share."""

import pytest
import torch

from pressgauge.conformance import architectures, guard


@pytest.fixture(autouse=True)
def unguarded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models of these tests are nobody else's."""
    monkeypatch.setattr(guard, "_GUARDED", {})
    monkeypatch.setattr(guard, "_USED", set())


def test_a_changed_model_is_found_once_it_was_handed_out() -> None:
    """And not again before it is handed out the next time."""
    model = guard.guarded(architectures.build("llama"))
    assert guard.changed() == []
    with torch.no_grad():
        # Behind the back of the counter that torch keeps of changes.
        model.model.layers[0].mlp.up_proj.weight.data[0, 0] += 1
    assert guard.changed() == []
    assert guard.guarded(model) is model
    assert guard.changed() == ["LlamaForCausalLM"]
    assert guard.changed() == []


def test_a_model_that_somebody_kept_is_found_everywhere() -> None:
    """A hook that is left behind, on a model that nobody asked for again."""
    model = guard.guarded(architectures.build("neox"))
    assert guard.changed() == []
    model.register_forward_hook(lambda module, given, output: None)
    assert guard.changed() == []
    assert guard.changed(everywhere=True) == ["GPTNeoXForCausalLM"]
