"""What the laws are held to."""

from typing import Any

import pytest
import torch

from pressgauge.models import load

from . import architectures
from .guard import guarded
from .subjects import find, ours_by_default


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every law runs on every subject, and laws about what a model computes on every model."""
    config = metafunc.config
    if "subject" in metafunc.fixturenames:
        reference = config.getoption("--subject")
        subjects = [find(reference)] if reference else ours_by_default()
        metafunc.parametrize("subject", subjects, ids=lambda subject: subject.name, scope="session")
    asked = config.getoption("--model")
    for name, models in (("model", list(architectures.ARCHITECTURES)), ("one_model", ["llama"])):
        if name in metafunc.fixturenames:
            metafunc.parametrize(name, [asked] if asked else models, indirect=True, scope="session")


@pytest.fixture(scope="session")
def model(request: pytest.FixtureRequest) -> Any:
    """A model in float64: a tiny random one of each architecture, or the one that was asked for. Not to be changed."""
    return specimen(request.param)


@pytest.fixture(scope="session")
def one_model(request: pytest.FixtureRequest) -> Any:
    """A tiny random Llama in float64, or the model that was asked for. Not to be changed."""
    return specimen(request.param)


def specimen(name: str) -> Any:
    """The model of this name: an architecture, a folder, a hub's name, or a reference model."""
    if name in architectures.ARCHITECTURES:
        return architectures.shared(name)
    if name not in _LOADED:
        found, _ = load(name, dtype=str(torch.float64).removeprefix("torch."))
        _LOADED[name] = guarded(found)
    return _LOADED[name]


_LOADED: dict[str, Any] = {}
