"""Run the laws and the scripts that verify findings, for the package of this environment."""

import inspect
import os
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from tools.peers.measured import PACKAGES, PEERS, Law, Measured, Verified

ROOT = PEERS.parents[1]
MOST = 200
"""Characters of a finding on a page."""


class _Kept:
    """A plugin of pytest that keeps the laws' outcomes and the scripts' docstrings."""

    def __init__(self) -> None:
        self.laws: dict[str, Any] = {}
        self.scripts: dict[str, str] = {}
        self.failed: list[str] = []

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            self.scripts[item.name] = " ".join((inspect.getdoc(getattr(item, "function", None)) or "").split())

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed.append(report.nodeid)

    def pytest_unconfigure(self, config: pytest.Config) -> None:
        laws = config.pluginmanager.get_plugin("pressgauge-laws")
        self.laws = getattr(laws, "laws", {})


def _run(arguments: list[str]) -> _Kept:
    kept = _Kept()
    pytest.main([*arguments, "-q", "-p", "no:cacheprovider", "-p", "no:randomly"], plugins=[kept])
    return kept


def laws_of(subject: str) -> dict[str, Law]:
    """Outcomes of the laws, in words, for a factory in ``tests/peers/packages/``; in a process of its own."""
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(_laws, (subject,))


def _laws(subject: str) -> dict[str, Law]:
    given = ["--pressgauge-subject", f"peers.packages.{subject}", "--pressgauge-model", "llama"]
    folder = str(ROOT / "tests" / "conformance")
    # As from the wheel, without the fixtures of this project's own tests.
    laws = _run([folder, "--confcutdir", folder, "-p", "pressgauge.conformance.plugin", *given]).laws
    if not laws:
        raise RuntimeError(f"no law ran against {subject}")
    found = {}
    for law in sorted(laws.values(), key=lambda one: one.place):
        if law.broken:
            found[law.words] = Law("broken", [short(finding) for finding in law.broken])
        elif law.held:
            found[law.words] = Law("held")
        else:
            found[law.words] = Law("not applicable", [short(reason) for reason in dict.fromkeys(law.not_applicable)])
    return found


def verified(package: str) -> list[Verified]:
    """Findings that the package's scripts verify.

    Raises:
        SystemExit: if one of them no longer holds.
    """
    from peers.verify import plain

    plain.SAID.clear()
    kept = _run([str(PEERS / "verify" / f"test_{package.replace('-', '_')}.py")])
    if kept.failed:
        raise SystemExit("\n".join(["No longer so, or crashed:", *kept.failed]))
    return [Verified(text, *plain.SAID.get(name, ("raises", ""))) for name, text in kept.scripts.items()]


def measure(package: str) -> Measured:
    """Everything about the package of this environment."""
    os.environ.setdefault("CI", "true")
    os.chdir(ROOT)
    about = PACKAGES[package]
    names = [requirement.partition("==")[0] for requirement in about["requires"]]
    releases = {name: version(name) for name in [*names, "transformers", "torch"]}
    scripts = verified(package)
    return Measured(releases, {subject: laws_of(subject) for subject in about["subjects"]}, scripts)


def short(text: str) -> str:
    """A finding in one line, without paths."""
    line = " ".join(text.replace(str(Path.home()), "~").split())
    return line if len(line) <= MOST else f"{line[:MOST].rstrip()} ..."
