"""Parametrisation of the laws: subjects and models."""

from pathlib import Path
from typing import Any

import pytest

from pressgauge.conformance.plugin import option

# Heavy modules are imported only in processes that run tests, see ``pressgauge.conformance.plugin``.

FIRST = "knorm-budget"
"""Press that runs on further architectures as well."""
EVERYWHERE = ("knorm-budget", "streaming-llm-prefill", "plain-KnormPress-step", "compress-function")
"""Presses that run on every architecture. The others run on one, since a press does not depend on the model."""

LONG = ("test_bytes", "test_models", "test_operations", "test_passes")
"""Files of laws that run our presses under their own schedules only, since many of them take a second each."""


def _name(value: Any) -> str:
    return str(getattr(value, "name", value))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every law runs on every subject, and laws about what a model computes on several models."""
    from pressgauge.conformance import architectures
    from pressgauge.conformance.subjects import find

    from .ours import one_per_press, ours_by_default

    reference, asked = (option(metafunc.config, name) for name in ("subject", "model"))
    subjects = find(reference) if reference else ours_by_default()
    if not reference and Path(metafunc.module.__file__).stem in LONG:
        subjects = one_per_press()
    everywhere = [asked] if asked else list(architectures.ARCHITECTURES)
    if "trained" in metafunc.fixturenames and not reference:
        subjects = [subject for subject in subjects if subject.declares.trends]
    if "model" in metafunc.fixturenames:
        pairs = [
            (subject, name)
            for subject in subjects
            for name in (everywhere if reference or asked or subject.name in EVERYWHERE else ["llama"])
        ]
        if not reference and not asked:
            pairs += [
                (subject, name) for subject in subjects if subject.name == FIRST for name in architectures.FURTHER
            ]
        metafunc.parametrize(("subject", "model"), pairs, indirect=["model"], ids=_name, scope="session")
    elif "subject" in metafunc.fixturenames:
        metafunc.parametrize("subject", subjects, ids=_name, scope="session")
    if "one_model" in metafunc.fixturenames:
        metafunc.parametrize("one_model", [asked or "llama"], indirect=True, scope="session")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the laws that do not concern a subject, for example those for functions that generate."""
    from pressgauge.conformance.smoke import concerns

    own = [item for item in items if isinstance(item, pytest.Function) and item.path.parent == Path(__file__).parent]
    beyond = {
        item
        for item in own
        if hasattr(item, "callspec") and not concerns(item.path.stem, item.callspec.params.get("subject"))
    }
    items[:] = [item for item in items if item not in beyond]


@pytest.fixture(scope="session")
def model(request: pytest.FixtureRequest) -> Any:
    """A float64 model: a tiny random one of each architecture, or the one named by ``--model``. Read-only."""
    return specimen(request.param)


@pytest.fixture(scope="session")
def one_model(request: pytest.FixtureRequest) -> Any:
    """A tiny random float64 Llama, or the model named by ``--model``. Read-only."""
    return specimen(request.param)


@pytest.fixture(scope="session")
def trained() -> Any:
    """A trained float32 Llama and its tokenizer. Read-only."""
    from pressgauge.conformance import devices
    from pressgauge.conformance.trained import trained_model

    return trained_model("reference", "float32", str(devices.chosen()))


def specimen(name: str) -> Any:
    """Model of this name: an architecture, a folder, a name on the hub, or a reference model."""
    from pressgauge.conformance import architectures, devices
    from pressgauge.conformance.trained import trained_model

    if name in architectures.NAMED:
        return architectures.under_test(name)
    return trained_model(name, "float64", str(devices.chosen()))[0]
