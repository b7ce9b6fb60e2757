"""What all tests share: the device, Hypothesis profiles, and a guard over the models that tests share."""

import os
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
import torch
import transformers
from conformance import guard
from hypothesis import HealthCheck, settings
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pressgauge.models import load

# Everything is drawn anew with HYPOTHESIS_PROFILE=nightly, and reproducible otherwise.
# One failure at a time: a law that a mutant breaks in two ways fails by an assertion, not by a group of them.
settings.register_profile("ci", derandomize=True, deadline=None, max_examples=40, report_multiple_bugs=False)
settings.register_profile(
    "nightly", deadline=None, max_examples=500, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

SHARED = Path(__file__).parents[2] / "shared"
"""A folder beside the project, with a real model and real texts; it is not part of the project."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", help="device that model-level tests run on: cpu, cuda or mps")


def pytest_report_header(config: pytest.Config) -> str:
    found = "found" if SHARED.is_dir() else "not found, tests that name it are skipped"
    return (
        f"torch {torch.__version__}, transformers {transformers.__version__}, "
        f"device {config.getoption('--device')}, shared folder {found}"
    )


def pytest_configure(config: pytest.Config) -> None:
    # Two workers on two cores: more threads only get in each other's way. One thread also repeats to the bit.
    torch.set_num_threads(1)


@cache
def _load(name: str, dtype: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    model, tokenizer = load(name, dtype=dtype)
    return guard.guarded(model), tokenizer


@pytest.fixture(scope="session")
def device(pytestconfig: pytest.Config) -> torch.device:
    """The device that was asked for."""
    return torch.device(pytestconfig.getoption("--device"))


@pytest.fixture(scope="session")
def reference() -> Callable[..., tuple[PreTrainedModel, PreTrainedTokenizerBase]]:
    """A reference model and its tokenizer: ``reference("reference", dtype="float64")``. Shared: not to be changed."""
    return lambda name="reference", dtype="float32": _load(name, dtype)


@pytest.fixture(scope="session")
def shared_folder() -> Path:
    """The folder with real weights and real texts."""
    if not SHARED.is_dir():
        pytest.skip("the folder 'shared' with tinystories-260k, WikiText-2 and books was not found beside the project")
    return SHARED


@pytest.fixture(scope="session")
def tinystories(shared_folder: Path) -> Callable[..., tuple[PreTrainedModel, PreTrainedTokenizerBase]]:
    """The pretrained 260K-parameter Llama and its tokenizer. Shared: not to be changed."""
    return lambda dtype="float32": _load(str(shared_folder / "models" / "tinystories-260k"), dtype)


@pytest.fixture(autouse=True)
def shared_models_are_left_alone() -> Iterator[None]:
    """Fail the test that changed a model that tests share."""
    yield
    assert not guard.changed(), "this test changed a model that all tests share"
