"""Run the laws and the scripts that verify findings, for the package of this environment."""

import inspect
import json
import os
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tools.peers.measured import PACKAGES, PEERS, Law, Measured, Verified

ROOT = PEERS.parents[1]


class _Kept:
    """A plugin of pytest that keeps the scripts' docstrings, and which of them failed."""

    def __init__(self) -> None:
        self.scripts: dict[str, str] = {}
        self.failed: list[str] = []

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            self.scripts[item.name] = " ".join((inspect.getdoc(getattr(item, "function", None)) or "").split())

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed.append(report.nodeid)


def _run(arguments: list[str]) -> _Kept:
    kept = _Kept()
    pytest.main([*arguments, "-q", "-p", "no:cacheprovider", "-p", "no:randomly"], plugins=[kept])
    return kept


def laws_of(subject: str) -> dict[str, Law]:
    """Outcomes of the laws, in words, for a factory in ``tests/peers/packages/``; in a process of its own."""
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(_laws, (subject,))


def _laws(subject: str) -> dict[str, Law]:
    folder = str(PEERS.parent / "conformance")
    with TemporaryDirectory() as place:
        summary = Path(place) / "laws.json"
        given = {"subject": f"peers.packages.{subject}", "model": "llama", "summary": str(summary)}
        options = [part for name, value in given.items() for part in (f"--pressgauge-{name}", value)]
        # As from the wheel, without the fixtures of this project's own tests.
        _run([folder, "--confcutdir", folder, "-p", "pressgauge.conformance.plugin", *options])
        laws = json.loads(summary.read_text(encoding="utf-8"))["laws"]
    return {
        one["law"]: Law(one["outcome"], [_line(each["finding"]) for each in one["findings"]] or one["reasons"])
        for one in laws
    }


def _line(text: str) -> str:
    return " ".join(text.split())


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
