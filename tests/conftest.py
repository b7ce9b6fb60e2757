"""What all tests share: the device, trained models, and a guard over the models that tests share."""

import gc
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

# What is heavy to import is imported where tests are run, see ``pressgauge.conformance.plugin``.
if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

if os.environ.get("ATEN_CPU_CAPABILITY", "avx512") != "avx512":
    # Else oneDNN packs bfloat16 for a processor that torch's other kernels were told not to see, which torch refuses.
    os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX2")

pytest_plugins = ["pressgauge.conformance.plugin", "regression.plugin"]

SHARED = Path(__file__).parents[2] / "shared"
"""A folder beside the project, with a real model and real texts; it is not part of the project."""


HELPLESS: tuple[str, ...] = ("Passing `generation_config` together with generation-related arguments",)
"""Parts of deprecations that cannot be helped here: transformers' own assisted decoding calls ``generate`` so."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--deprecations", action="store_true", help="fail a test that uses what torch or transformers is to remove"
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--deprecations"):
        for category in ("FutureWarning", "DeprecationWarning", "PendingDeprecationWarning"):
            config.addinivalue_line("filterwarnings", f"error::{category}")


class Deprecations(logging.Handler):
    """Collects what transformers' logger says of what is to be removed, each of which it says once."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if "deprecat" in message.lower() and not any(part in message for part in HELPLESS):
            self.messages.append(message)


@pytest.fixture(scope="session")
def deprecations() -> Iterator[Deprecations]:
    """What transformers' logger has said so far."""
    handler, logger = Deprecations(), logging.getLogger("transformers")
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)


@pytest.fixture(autouse=True)
def nothing_deprecated_is_used(pytestconfig: pytest.Config, deprecations: Deprecations) -> Iterator[None]:
    """Fail the test at which transformers' logger speaks of a deprecation, if that is asked for."""
    deprecations.messages.clear()
    yield
    assert not (pytestconfig.getoption("--deprecations") and deprecations.messages), deprecations.messages


def pytest_report_header() -> str:
    return f"shared folder {'found' if SHARED.is_dir() else 'not found, tests that name it are skipped'}"


def pytest_collection_finish() -> None:
    """What is imported by now stays: to look through it for garbage again and again takes a tenth of a run."""
    gc.freeze()


@pytest.fixture(scope="session")
def device(pytestconfig: pytest.Config) -> "torch.device":
    """The device that was asked for."""
    import torch

    return torch.device(pytestconfig.getoption("pressgauge_device"))


@pytest.fixture(scope="session")
def reference() -> "Callable[..., tuple[PreTrainedModel, PreTrainedTokenizerBase]]":
    """A reference model and its tokenizer: ``reference("reference", dtype="float64")``, on the CPU unless a device is
    given. Shared: not to be changed."""
    from pressgauge.conformance.trained import trained_model

    return lambda name="reference", dtype="float32", device="cpu": trained_model(name, dtype, device)


@pytest.fixture(scope="session")
def shared_folder() -> Path:
    """The folder with real weights and real texts."""
    if not SHARED.is_dir():
        pytest.skip("the folder 'shared' with tinystories-260k, WikiText-2 and books was not found beside the project")
    return SHARED


@pytest.fixture(scope="session")
def tinystories(shared_folder: Path) -> "Callable[..., tuple[PreTrainedModel, PreTrainedTokenizerBase]]":
    """The pretrained 260K-parameter Llama and its tokenizer. Shared: not to be changed."""
    from pressgauge.conformance.trained import trained_model

    return lambda dtype="float32": trained_model(str(shared_folder / "models" / "tinystories-260k"), dtype)


@pytest.fixture(autouse=True)
def shared_models_are_left_alone() -> Iterator[None]:
    """Fail the test that changed a model that tests share."""
    from pressgauge.conformance import guard

    yield
    assert not guard.changed(), "this test changed a model that all tests share"


@pytest.fixture(autouse=True, scope="module")
def models_of_other_tests_are_left_alone() -> Iterator[None]:
    """Fail the last test of a file that changed a model without asking for it, as one that a fixture keeps."""
    from pressgauge.conformance import guard

    yield
    assert not guard.changed(everywhere=True), "a test of this file changed a model that all tests share"
