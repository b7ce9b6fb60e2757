"""Shared fixtures: devices, trained models, and a guard over shared models."""

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

# Heavy modules are imported only in processes that run tests, see ``pressgauge.conformance.plugin``.
if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

if os.environ.get("ATEN_CPU_CAPABILITY", "avx512") != "avx512":
    # Otherwise oneDNN packs bfloat16 for an instruction set that torch's other kernels do not use, which torch refuses.
    os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX2")

pytest_plugins = ["pressgauge.conformance.plugin", "regression.plugin"]

SHARED = Path(__file__).parents[2] / "shared"
"""A folder next to the project with a real model and real texts; not part of the project."""


HELPLESS: tuple[str, ...] = ("Passing `generation_config` together with generation-related arguments",)
"""Parts of deprecation messages that transformers' own code causes, such as assisted decoding."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--deprecations", action="store_true", help="fail a test that uses what torch or transformers is to remove"
    )
    parser.addoption("--real-model", metavar="FOLDER", help="Gemma 3 270M, as nox -s real fetches it")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--deprecations"):
        for category in ("FutureWarning", "DeprecationWarning", "PendingDeprecationWarning"):
            config.addinivalue_line("filterwarnings", f"error::{category}")


class Deprecations(logging.Handler):
    """Collects deprecations logged by transformers, each logged once."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if "deprecat" in message.lower() and not any(part in message for part in HELPLESS):
            self.messages.append(message)


@pytest.fixture(scope="session")
def deprecations() -> Iterator[Deprecations]:
    """Deprecations logged by transformers so far."""
    handler, logger = Deprecations(), logging.getLogger("transformers")
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)


@pytest.fixture(autouse=True)
def nothing_deprecated_is_used(pytestconfig: pytest.Config, deprecations: Deprecations) -> Iterator[None]:
    """Fail the test during which transformers logs a deprecation, if requested."""
    deprecations.messages.clear()
    yield
    assert not (pytestconfig.getoption("--deprecations") and deprecations.messages), deprecations.messages


def pytest_report_header() -> str:
    return f"shared folder {'found' if SHARED.is_dir() else 'not found, tests that name it are skipped'}"


@pytest.fixture(scope="session")
def device(pytestconfig: pytest.Config) -> "torch.device":
    """The chosen device."""
    import torch

    return torch.device(pytestconfig.getoption("pressgauge_device"))


@pytest.fixture(scope="session")
def reference() -> "Callable[..., tuple[PreTrainedModel, PreTrainedTokenizerBase]]":
    """A reference model and its tokenizer: ``reference("reference", dtype="float64")``, on the CPU by default. Shared
    and read-only."""
    from pressgauge.conformance.trained import trained_model

    return lambda name="reference", dtype="float32", device="cpu": trained_model(name, dtype, device)


@pytest.fixture(scope="session")
def shared_folder() -> Path:
    """The folder with real weights and texts."""
    if not SHARED.is_dir():
        pytest.skip("the folder 'shared' with tinystories-260k, WikiText-2 and books was not found beside the project")
    return SHARED


@pytest.fixture(scope="session")
def tinystories(shared_folder: Path) -> "Callable[..., tuple[PreTrainedModel, PreTrainedTokenizerBase]]":
    """The pretrained 260K-parameter Llama and its tokenizer. Shared and read-only."""
    from pressgauge.conformance.trained import trained_model

    return lambda dtype="float32": trained_model(str(shared_folder / "models" / "tinystories-260k"), dtype)


@pytest.fixture(scope="session")
def real_model(pytestconfig: pytest.Config) -> str:
    """The folder of Gemma 3 270M."""
    path = pytestconfig.getoption("real_model")
    if path is None:
        pytest.skip("Gemma 3 270M was not found: `nox -s real` fetches it, and --real-model names its folder")
    return str(path)


@pytest.fixture(autouse=True)
def shared_models_are_left_alone() -> Iterator[None]:
    """Fail a test that changed a shared model."""
    from pressgauge.conformance import guard

    yield
    assert not guard.changed(), "this test changed a model that all tests share"


@pytest.fixture(autouse=True, scope="module")
def models_of_other_tests_are_left_alone() -> Iterator[None]:
    """Fail the last test of a file that changed a guarded model without requesting it, such as one kept by a
    fixture."""
    from pressgauge.conformance import guard

    yield
    assert not guard.changed(everywhere=True), "a test of this file changed a model that all tests share"
