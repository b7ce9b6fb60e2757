"""pytest plugin of the laws: options, header and summary."""

import gc
import os
from collections.abc import Generator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.database import DirectoryBasedExampleDatabase

from pressgauge.conformance.known import Known, known_finding, read
from pressgauge.conformance.summary import AUDITED, KNOWN, NOTED, REFUSED, UNUSABLE, Laws, finding_of, in_words

# Modules that import torch and transformers are imported where tests run, since the import takes as long as many tests.
# With pytest-xdist, the controller process only distributes tests.

# With HYPOTHESIS_PROFILE=random or nightly, examples are random; otherwise runs are reproducible.
# One failure at a time: a law that a mutant breaks in two ways fails by an assertion, not by an exception group.
settings.register_profile("ci", derandomize=True, deadline=None, max_examples=24, report_multiple_bugs=False)
# On CI machines Hypothesis derandomises and disables the database by default, so both are set.
ANEW = settings(
    derandomize=False, database=DirectoryBasedExampleDatabase(".hypothesis/examples"), deadline=None, print_blob=True
)
settings.register_profile("random", ANEW, max_examples=32, report_multiple_bugs=False)
settings.register_profile("nightly", ANEW, max_examples=500, suppress_health_check=[HealthCheck.too_slow])


MEASUREMENTS = {"evaluator": "evaluator", "benchmark": "benchmark", "memory": "memory figure"}
"""Kinds of measuring functions."""


def load_profile() -> None:
    """Load the Hypothesis profile named in the environment."""
    settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("pressgauge")

    def add(name: str, **given: Any) -> None:
        """Add ``--pressgauge-NAME``, and the short ``--NAME`` unless another plugin defines it."""
        try:
            group.addoption(f"--pressgauge-{name}", f"--{name}", dest=f"pressgauge_{name}", **given)
        except ValueError:
            group.addoption(f"--pressgauge-{name}", dest=f"pressgauge_{name}", **given)

    add("subject", metavar="M:F", help="the compressor under test: package.module:factory")
    for kind in MEASUREMENTS:
        add(kind, metavar="M:F", help=f"the {MEASUREMENTS[kind]} under audit: package.module:function")
    add(
        "model", metavar="M", help="run laws about what a model computes on this one: an architecture, a folder, or "
        "a name on the hub",
    )  # fmt: skip
    add("known", metavar="FILE", type=Path, help="TOML file of known findings, which do not fail the run")
    add(
        "summary", metavar="FILE", type=Path, action="append", default=[], help="write the outcomes of the laws to "
        "this file, .json or .md; may be repeated",
    )  # fmt: skip
    add("device", default="cpu", help="device that model-level tests run on: cpu, cuda or mps")


def option(config: pytest.Config, name: str) -> Any:
    """Value of ``--pressgauge-NAME``."""
    return config.getoption(f"pressgauge_{name}")


def _is_worker(config: pytest.Config) -> bool:
    """Whether this process is a worker of pytest-xdist."""
    return hasattr(config, "workerinput")


def _runs_tests(config: pytest.Config) -> bool:
    """Whether this process runs tests, unlike the controller of pytest-xdist."""
    return _is_worker(config) or not getattr(config.option, "numprocesses", None)


def pytest_configure(config: pytest.Config) -> None:
    # Laws feed single passes, and look at more than the logits. By its text, since the class would load torch.
    config.addinivalue_line("filterwarnings", "ignore:.* and no query met an eviction, so:UserWarning")
    profile = settings.get_current_profile_name()
    config.add_cleanup(lambda: settings.load_profile(profile))
    load_profile()
    if _runs_tests(config):
        # Imports make many objects and little garbage, and collecting takes a sixth of their time.
        gc.disable()
        config.add_cleanup(gc.enable)
        import torch

        from pressgauge.conformance import devices

        device, threads = devices.chosen(), torch.get_num_threads()
        config.add_cleanup(lambda: devices.choose(device))
        config.add_cleanup(lambda: torch.set_num_threads(threads))
        if option(config, "device") != "mps":
            # Laws are exact in float64, which MPS does not support.
            devices.choose(torch.device(option(config, "device")))
        # With two workers on two cores, more threads would compete. A single thread is also bit-reproducible.
        torch.set_num_threads(1)
    # Fail with one sentence before collection if a name is not found; a worker tells the controller.
    if audited := _told(config) if _is_worker(config) else _audited(config):
        if config.getoption("tbstyle") == "auto":
            # Each finding is one line, and is listed in the summary.
            config.option.tbstyle = "no"
        config.stash[KNOWN_FINDINGS] = _known(config)
        laws = Laws(audited, config.stash[KNOWN_FINDINGS], _summaries(config))
        config.pluginmanager.register(laws, "pressgauge-laws")


KNOWN_FINDINGS: pytest.StashKey[list[Known]] = pytest.StashKey()


def _known(config: pytest.Config) -> list[Known]:
    """Known findings of ``--pressgauge-known``.

    Raises:
        pytest.UsageError: if the file cannot be read, or has another format.
    """
    path: Path | None = option(config, "known")
    try:
        return read(path) if path else []
    except ValueError as error:
        raise pytest.UsageError(f"--known: {error}") from None


def _summaries(config: pytest.Config) -> list[Path]:
    """Files of ``--pressgauge-summary``.

    Raises:
        pytest.UsageError: if one is neither JSON nor Markdown, or its folder does not exist.
    """
    paths: list[Path] = option(config, "summary")
    for path in paths:
        if path.suffix not in (".json", ".md") or not path.parent.is_dir():
            raise pytest.UsageError(f"--summary must be a .json or .md file in a folder that exists, got {path}")
    return paths


def _audited(config: pytest.Config) -> list[str]:
    """Descriptions of what is under audit, one for each option that names something.

    The controller of pytest-xdist, which does not load what is under audit, knows names only.

    Raises:
        pytest.UsageError: if a name is not found, or cannot be used.
    """
    if not _runs_tests(config):
        given = {kind: option(config, kind) for kind in ("subject", *MEASUREMENTS)}
        return [f"{kind}: {reference}" for kind, reference in given.items() if reference]
    found = []
    if reference := option(config, "subject"):
        from pressgauge.conformance import subjects

        found += [f"subject: {subject}" for subject in subjects.find(reference)]
    for kind in MEASUREMENTS:
        if reference := option(config, kind):
            from pressgauge.measuring.subjects import find

            found.append(f"{kind}: {find(kind, reference)}")
    return found


def _told(config: pytest.Config) -> list[str]:
    """Descriptions of what is under audit, also for the controller; if it cannot be used, the reason is for the
    controller, and this worker runs no test."""
    output: dict[str, Any] = config.workeroutput  # type: ignore[attr-defined]
    try:
        output[AUDITED] = _audited(config)
    except pytest.UsageError as error:
        output[UNUSABLE] = str(error)
        config.pluginmanager.register(_Idle())
        return []
    found: list[str] = output[AUDITED]
    return found


class _Idle:
    """Plugin of a worker that has nothing to run."""

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection(self, session: pytest.Session) -> bool:
        """Collect nothing."""
        session.items = []
        session.config.hook.pytest_collection_finish(session=session)
        return True


def pytest_collection_finish() -> None:
    """Exclude imported objects from garbage collection, which would take a tenth of a run."""
    gc.freeze()
    gc.enable()


def pytest_report_header(config: pytest.Config) -> list[str]:
    releases = f"torch {version('torch')}, transformers {version('transformers')}, device {option(config, 'device')}"
    # A worker of pytest-xdist prints nothing.
    return [releases, *([] if _is_worker(config) else _audited(config))]


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """Turn a subject's refusal into "not applicable".

    Attached presses of this package must not refuse anything here. Plain caches may refuse batches, which may be
    padded. Laws that draw their cases draw another one; refusals there are recorded, so that they are not mistaken for
    cases that held.
    """
    from pressgauge.conformance.outcomes import NOTES, REFUSALS, Refused, not_applicable, refused_draws
    from pressgauge.conformance.smoke import MEMORY, require_acts, require_dtype, require_first
    from pressgauge.conformance.subjects import Subject

    REFUSALS.clear()
    NOTES.clear()
    subject = pyfuncitem.funcargs.get("subject")
    try:
        if option(pyfuncitem.config, "subject") and isinstance(subject, Subject):
            require_first(pyfuncitem.originalname, subject)
        if "dtype" in pyfuncitem.funcargs and isinstance(subject, Subject):
            require_dtype(subject, pyfuncitem.funcargs["dtype"])
        with refused_draws():
            result = yield
        if option(pyfuncitem.config, "subject") and pyfuncitem.originalname in MEMORY:
            require_acts(subject)
        return result
    except Refused as refusal:
        ours = not any(option(pyfuncitem.config, name) for name in ("subject", "model", *MEASUREMENTS))
        if ours and not (isinstance(subject, Subject) and subject.adapter.declines_batches):
            raise
        not_applicable(f"the subject refuses: {refusal}")
    finally:
        pyfuncitem.user_properties.append((REFUSED, list(dict.fromkeys(REFUSALS))))
        pyfuncitem.user_properties.append((NOTED, list(dict.fromkeys(NOTES))))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A known finding does not fail the run."""
    report = yield
    known: list[Known] = item.config.stash.get(KNOWN_FINDINGS, [])
    if report.failed and (one := known_finding(known, in_words(item.name), finding_of(report))):
        report.user_properties.append((KNOWN, [finding_of(report), one.reason]))
        report.outcome = "skipped"
        report.wasxfail = f"known: {one.reason}"
    return report
