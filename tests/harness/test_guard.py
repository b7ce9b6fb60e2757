"""The guard detects changes to models shared by tests."""

import pytest
import torch

from pressgauge.conformance import architectures, guard


@pytest.fixture(autouse=True)
def unguarded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Separate guarded models for these tests."""
    monkeypatch.setattr(guard, "_GUARDED", {})
    monkeypatch.setattr(guard, "_USED", set())


def test_a_changed_model_is_found_once_per_use() -> None:
    """A changed model is reported once after each use."""
    model = guard.guarded(architectures.build("llama"))
    assert guard.changed() == []
    with torch.no_grad():
        # Without incrementing torch's version counter.
        model.model.layers[0].mlp.up_proj.weight.data[0, 0] += 1
    assert guard.changed() == []
    assert guard.guarded(model) is model
    assert guard.changed() == ["LlamaForCausalLM"]
    assert guard.changed() == []


def test_a_changed_model_is_found_without_being_used() -> None:
    """With ``everywhere``, a hook on a model not in use is found."""
    model = guard.guarded(architectures.build("neox"))
    assert guard.changed() == []
    model.register_forward_hook(lambda module, given, output: None)
    assert guard.changed() == []
    assert guard.changed(everywhere=True) == ["GPTNeoXForCausalLM"]
