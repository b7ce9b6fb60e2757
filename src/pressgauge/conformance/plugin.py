"""pytest plugin of the laws: options, header and summary."""

import os
import re
from collections.abc import Generator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.database import DirectoryBasedExampleDatabase

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

REFUSED = "refused"
"""Name of the report property that lists a subject's refusals."""

NOTED = "noted"
"""Name of the report property that lists observations which break no law."""


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
    add("device", default="cpu", help="device that model-level tests run on: cpu, cuda or mps")


def option(config: pytest.Config, name: str) -> Any:
    """Value of ``--pressgauge-NAME``."""
    return config.getoption(f"pressgauge_{name}")


def _runs_tests(config: pytest.Config) -> bool:
    """Whether this process runs tests, unlike the controller of pytest-xdist."""
    return hasattr(config, "workerinput") or not getattr(config.option, "numprocesses", None)


def pytest_configure(config: pytest.Config) -> None:
    # Laws feed single passes, and look at more than the logits. By its text, since the class would load torch.
    config.addinivalue_line("filterwarnings", "ignore:.* and no query met an eviction, so:UserWarning")
    profile = settings.get_current_profile_name()
    config.add_cleanup(lambda: settings.load_profile(profile))
    load_profile()
    if _runs_tests(config):
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
    # Fail with one sentence before collection if a name is not found.
    if _audited(config):
        if config.getoption("tbstyle") == "auto":
            # Each finding is one line, and is listed in the summary.
            config.option.tbstyle = "no"
        config.pluginmanager.register(Laws(), "pressgauge-laws")


def _audited(config: pytest.Config) -> list[str]:
    """Descriptions of what is under audit, one for each option that names something.

    Raises:
        pytest.UsageError: if a name is not found, or cannot be used.
    """
    found = []
    if reference := option(config, "subject"):
        from pressgauge.conformance import subjects

        found += [f"subject: {subject}" for subject in subjects.find(reference)]
    for kind in MEASUREMENTS:
        if reference := option(config, kind):
            from pressgauge.measuring.subjects import find

            found.append(f"{kind}: {find(kind, reference)}")
    return found


def pytest_report_header(config: pytest.Config) -> list[str]:
    releases = f"torch {version('torch')}, transformers {version('transformers')}, device {option(config, 'device')}"
    return [releases, *_audited(config)]


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """Turn a subject's refusal into "not applicable".

    Attached presses of this package must not refuse anything here. Plain caches may refuse batches, which may be
    padded. Laws that draw their cases draw another one; refusals there are recorded, so that they are not mistaken for
    cases that held.
    """
    from pressgauge.conformance.outcomes import NOTES, REFUSALS, Refused, not_applicable, refused_draws
    from pressgauge.conformance.smoke import require_dtype, require_first
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
            return (yield)
    except Refused as refusal:
        ours = not any(option(pyfuncitem.config, name) for name in ("subject", "model", *MEASUREMENTS))
        if ours and not (isinstance(subject, Subject) and subject.adapter.declines_batches):
            raise
        not_applicable(f"the subject refuses: {refusal}")
    finally:
        pyfuncitem.user_properties.append((REFUSED, list(dict.fromkeys(REFUSALS))))
        pyfuncitem.user_properties.append((NOTED, list(dict.fromkeys(NOTES))))


@dataclass
class Law:
    """Outcome of one law over all its cases."""

    words: str
    place: tuple[str, int]
    """File and line, which give the order of the summary."""
    held: int = 0
    broken: dict[str, list[str]] = field(default_factory=dict)
    """Findings, each with its models or dtypes if there are several."""
    refused: list[str] = field(default_factory=list)
    """The subject's messages about cases that were not checked."""
    not_applicable: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """Observations that break no law."""


class Laws:
    """Collector of the laws' outcomes, printed in the summary: broken, held, not applicable."""

    def __init__(self) -> None:
        self.laws: dict[str, Law] = {}
        self.vacuous: dict[str, list[str]] = {}
        """Findings that a subject does nothing, each with its cases."""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        file, line, name = report.location
        if Path(file).parent.name not in ("conformance", "measuring", "laws"):
            return
        name = name.partition("[")[0]
        law = self.laws.setdefault(name, Law(name.removeprefix("test_").replace("_", " "), (file, line or 0)))
        law.notes += _listed(report, NOTED)
        if report.failed:
            finding = _finding(report)
            law.broken.setdefault(finding, []).append(_case(report))
            if _kind(report) == "Vacuous":
                self.vacuous.setdefault(finding, []).append(_case(report))
        elif report.skipped:
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            law.not_applicable.append(reason.removeprefix("Skipped: ").removeprefix("not applicable: "))
        elif report.when == "call":
            law.held += 1
            law.refused += _listed(report, REFUSED)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        write = terminalreporter
        write.section("laws")
        # Those that come first are in a file of their own.
        laws = sorted(self.laws.values(), key=lambda law: (Path(law.place[0]).name != "test_smoke.py", law.place))
        broken = [law for law in laws if law.broken]
        held = [law for law in laws if law.held and not law.broken]
        idle = [law for law in laws if not law.held and not law.broken]
        for finding, cases in self.vacuous.items():
            write.write_line(f"vacuous         {_with_cases(finding, cases)}", red=True)
        for law in broken:
            write.write_line(f"broken          {law.words}", red=True)
            for finding, cases in law.broken.items():
                write.write_line(f"                {_with_cases(finding, cases)}")
            self._write_notes(write, law)
        for law in held:
            write.write_line(f"held            {law.words}", green=True)
            for reason in dict.fromkeys(law.not_applicable):
                write.write_line(f"                but for some models: {reason}")
            for sentence in dict.fromkeys(law.refused):
                write.write_line(f"                but for cases that the subject refuses: {sentence}")
            self._write_notes(write, law)
        groups: dict[tuple[str, ...], list[Law]] = {}
        for law in idle:
            groups.setdefault(tuple(dict.fromkeys(law.not_applicable)), []).append(law)
        for reasons, some in groups.items():
            for law in some:
                write.write_line(f"not applicable  {law.words}", yellow=True)
            for reason in reasons:
                write.write_line(f"                {reason}")
        write.write_line(f"{len(broken)} laws broken, {len(held)} held, {len(idle)} not applicable")

    @staticmethod
    def _write_notes(write: pytest.TerminalReporter, law: Law) -> None:
        for sentence in dict.fromkeys(law.notes):
            write.write_line(f"                note: {sentence}")


def _listed(report: pytest.TestReport, name: str) -> list[str]:
    """Sentences in the report property of this name."""
    values: list[Any] = [value for what, value in report.user_properties if what == name]
    return [sentence for sentences in values for sentence in sentences]


def _case(report: pytest.TestReport) -> str:
    """Model or dtype of a case, if the law is parametrised."""
    parameters = report.location[2].partition("[")[2].removesuffix("]")
    # A subject is named package.module:factory, with its options in parentheses if they are varied.
    options = re.search(r":[^-(]*\((.*)\)", parameters)
    rest = parameters.replace(options[0], ":") if options else parameters
    model = "-".join(part for part in rest.split("-") if ":" not in part)
    return ", ".join(part for part in (options[1] if options else "", model) if part)


def _with_cases(finding: str, cases: list[str]) -> str:
    which = ", ".join(case for case in cases if case)
    return f"{finding}{f' ({which})' if which else ''}"


def _first_line(report: pytest.TestReport) -> str:
    crash = getattr(report.longrepr, "reprcrash", None)
    message = crash.message if crash is not None else str(report.longrepr)
    return next((line for line in message.splitlines() if line.strip()), "no message")


def _kind(report: pytest.TestReport) -> str:
    """Class of a failure."""
    return _first_line(report).partition(": ")[0].rpartition(".")[2]


def _finding(report: pytest.TestReport) -> str:
    """First line of a failure's message."""
    line, kind = _first_line(report), _kind(report)
    if kind in ("Departure", "Unreadable", "Vacuous"):
        return line.partition(": ")[2]
    return f"it crashes: {line}" if kind.endswith(("Error", "Exception")) and kind != "AssertionError" else line
