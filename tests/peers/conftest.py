"""Modules that need a third-party package are collected only where it is installed, as in its session of ``nox``."""

import tomllib
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path


def installed(requirement: str) -> bool:
    """Whether a pinned requirement is met here."""
    name, _, release = requirement.partition("==")
    try:
        return version(name) == release
    except PackageNotFoundError:
        return False


collect_ignore = [] if find_spec("kvpress") else ["test_agreement.py", "test_measured.py", "test_watch.py"]
for package, about in tomllib.loads((Path(__file__).parent / "packages.toml").read_text(encoding="utf-8")).items():
    if not all(map(installed, about["requires"])):
        module = package.replace("-", "_")
        collect_ignore += [f"verify/test_{module}.py", f"packages/{module}.py"]
