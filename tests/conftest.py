"""What all tests share: the device, trained models, and a guard over the models that tests share."""

import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

# What is heavy to import is imported where tests are run, see ``conformance.plugin``.
if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

pytest_plugins = ["conformance.plugin", "regression.plugin"]

SHARED = Path(__file__).parents[2] / "shared"
"""A folder beside the project, with a real model and real texts; it is not part of the project."""


def pytest_report_header() -> str:
    return f"shared folder {'found' if SHARED.is_dir() else 'not found, tests that name it are skipped'}"


def pytest_collection_finish() -> None:
    """What is imported by now stays: to look through it for garbage again and again takes a tenth of a run."""
    gc.freeze()


@pytest.fixture(scope="session")
def device(pytestconfig: pytest.Config) -> "torch.device":
    """The device that was asked for."""
    import torch

    return torch.device(pytestconfig.getoption("--device"))


@pytest.fixture(scope="session")
def reference() -> "Callable[..., tuple[PreTrainedModel, PreTrainedTokenizerBase]]":
    """A reference model and its tokenizer: ``reference("reference", dtype="float64")``, on the CPU unless a device is
    given. Shared: not to be changed."""
    from conformance.trained import trained_model

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
    from conformance.trained import trained_model

    return lambda dtype="float32": trained_model(str(shared_folder / "models" / "tinystories-260k"), dtype)


@pytest.fixture(autouse=True)
def shared_models_are_left_alone() -> Iterator[None]:
    """Fail the test that changed a model that tests share."""
    from conformance import guard

    yield
    assert not guard.changed(), "this test changed a model that all tests share"


@pytest.fixture(autouse=True, scope="module")
def models_of_other_tests_are_left_alone() -> Iterator[None]:
    """Fail the last test of a file that changed a model without asking for it, as one that a fixture keeps."""
    from conformance import guard

    yield
    assert not guard.changed(everywhere=True), "a test of this file changed a model that all tests share"
