"""Guard over models shared by tests, which detects changes to them."""

from transformers import PreTrainedModel

from pressgauge.conventions.state import Fingerprint, fingerprint

_GUARDED: dict[int, tuple[PreTrainedModel, Fingerprint]] = {}
_USED: set[int] = set()


def guarded(model: PreTrainedModel) -> PreTrainedModel:
    """Guard a model from now on. Must be called whenever a shared model is passed to a test."""
    if id(model) not in _GUARDED:
        _GUARDED[id(model)] = model, fingerprint(model)
    _USED.add(id(model))
    return model


def changed(*, everywhere: bool = False) -> list[str]:
    """Class names of guarded models that have changed.

    Args:
        everywhere: check all guarded models, not only those used since the last call.
    """
    asked = list(_GUARDED) if everywhere else list(_USED)
    _USED.clear()
    models = [_GUARDED[key] for key in asked]
    return [type(model).__name__ for model, before in models if fingerprint(model) != before]
