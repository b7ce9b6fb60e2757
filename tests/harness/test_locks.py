"""The locks: every session installs with one, which pins all that it asks for, and no index or build with it."""

import inspect
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from support.pages import ROOT, sessions
from tools import lock

LOCKS = sorted(path.name for path in ROOT.glob("constraints*.txt"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
CUDA = re.compile(r"cuda-|nvidia-|triton$")
"""What torch's build for CUDA needs, and no lock pins."""


def pins(lock: str) -> dict[str, str]:
    """The version of each package."""
    lines = (ROOT / lock).read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


def dependency_group(name: str) -> Iterator[str]:
    """The requirements of a dependency group."""
    for each in PROJECT["dependency-groups"][name]:
        yield from [each] if isinstance(each, str) else dependency_group(each["include-group"])


class Session:
    """A session of nox that only remembers what it was to install and to run."""

    venv_backend = "virtualenv"
    posargs: tuple[str, ...] = ()

    def __init__(self, folder: Path) -> None:
        self.env: dict[str, str] = {}
        self.builds: dict[str, str] = {}
        self.installed: list[tuple[str, ...]] = []
        self.ran: list[tuple[str, ...]] = []
        self.folder = folder

    def install(self, *arguments: str, env: dict[str, str] | None = None) -> None:
        self.builds = env or {}
        self.installed.append(arguments)

    def run(self, *arguments: str, **options: object) -> str:
        """Answer that the device is there."""
        self.ran.append(arguments)
        return "True"

    def create_tmp(self) -> str:
        return str(self.folder)

    def chdir(self, folder: Path | str) -> None:
        """Stay."""


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> dict[str, Callable[..., None]]:
    """The sessions of the noxfile. nox itself is not among the tests' requirements."""
    functions: dict[str, Callable[..., None]] = {}

    def session(function: Callable[..., None] | None = None, **options: object) -> Any:
        if function is None:
            return session
        functions[function.__name__] = function
        return function

    nox: Any = ModuleType("nox")
    nox.session = session
    nox.parametrize = lambda *arguments, **options: lambda function: function
    nox.options = SimpleNamespace()
    nox.Session = Session
    nox.project = SimpleNamespace(
        load_toml=lambda path: PROJECT,
        dependency_groups=lambda project, *names: [each for name in names for each in dependency_group(name)],
    )
    monkeypatch.setitem(sys.modules, "nox", nox)
    monkeypatch.chdir(ROOT)
    spec = spec_from_file_location("noxfile", ROOT / "noxfile.py")
    assert spec is not None
    assert spec.loader is not None
    spec.loader.exec_module(module_from_spec(spec))
    return functions


@pytest.mark.parametrize("name", sorted(name for name in sessions() if "(" not in name))
def test_every_session_installs_what_a_lock_pins(
    found: dict[str, Callable[..., None]], tmp_path: Path, name: str
) -> None:
    """All that it asks for, the dependencies of the package among it; only ``newest`` has no lock."""
    session = Session(tmp_path)
    parameters = {"train": ["reference"], "mutate": ["hold"]}.get(name, [])
    assert len(inspect.signature(found[name]).parameters) == 1 + len(parameters)
    found[name](session, *parameters)
    (arguments,) = session.installed
    if name == "newest":
        assert "--constraint" not in arguments
        assert "PIP_CONSTRAINT" not in session.builds
        return
    where = arguments.index("--constraint")
    lock = arguments[where + 1]
    options = ("--no-compile", "--editable", ".[bench]")
    asked = [each for each in (*arguments[:where], *arguments[where + 2 :]) if each not in options]
    if ".[bench]" in arguments:
        asked += [*PROJECT["project"]["dependencies"], *PROJECT["project"]["optional-dependencies"]["bench"]]
        # What builds the package is pinned as well.
        assert session.builds["PIP_CONSTRAINT"] == session.builds["PIP_BUILD_CONSTRAINT"] == (ROOT / lock).as_uri()
        asked += PROJECT["build-system"]["requires"]
    for requirement in map(Requirement, asked):
        assert pins(lock)[canonicalize_name(requirement.name)] in requirement.specifier


def test_the_newest_releases_are_listed_before_they_are_tried(
    found: dict[str, Callable[..., None]], tmp_path: Path
) -> None:
    """All are taken, also those that would do as they are; then the list; then the whole suite."""
    session = Session(tmp_path)
    found["newest"](session)
    (arguments,) = session.installed
    assert arguments[:4] == ("--no-compile", "--upgrade", "--upgrade-strategy", "eager")
    listing, suite = session.ran
    assert listing == ("python", "-m", "tools.lock", "newer", "constraints.txt")
    assert suite == ("python", "-m", "pytest", "--device", "cpu", "--numprocesses", "2")


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_pins_releases_alone(lock: str) -> None:
    """No index, no file, no local label, nothing that only torch's build for CUDA needs; torch where it is."""
    lines = (ROOT / lock).read_text(encoding="utf-8").splitlines()
    pinned = [line for line in lines if not line.startswith("#")]
    for line in pinned:
        name, separator, release = line.partition("==")
        assert separator == "=="
        assert canonicalize_name(name) == name
        assert str(Version(release)) == release
        assert Version(release).local is None
        assert not CUDA.match(name)
    assert pinned == sorted(set(pinned), key=lambda line: line.split("==")[0])
    assert "torch==2.13.0" in pinned


@pytest.mark.parametrize("lock", LOCKS)
def test_what_a_pinned_release_needs_is_pinned(lock: str) -> None:
    """As far as it is installed here in this release."""
    locked = pins(lock)
    here = [name for name, release in locked.items() if installed(name) == release]
    missing = set()
    for name in here:
        for requirement in map(Requirement, requires(name) or []):
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                missing |= {canonicalize_name(requirement.name)} - set(locked)
    assert [name for name in missing if not CUDA.match(name)] == []


def installed(name: str) -> str | None:
    """The release that is installed here, without its local label; None for no release."""
    try:
        return Version(version(name)).public
    except PackageNotFoundError:
        return None


def test_what_is_newer_than_a_lock_is_listed(tmp_path: Path) -> None:
    """With both releases; not what is older, as locked, or not locked."""
    lock = tmp_path / "lock.txt"
    lock.write_text(f"# why\npytest==1.0\ntorch=={installed('torch')}\ntransformers==999\nno-such-package==1.0\n")
    listed = subprocess.run(
        [sys.executable, "-m", "tools.lock", "newer", lock], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert listed.stdout == f"newer than lock.txt:\n  pytest  1.0 -> {installed('pytest')}\n"


def test_that_nothing_is_newer_than_a_lock_is_said(tmp_path: Path) -> None:
    """In one line."""
    lock = tmp_path / "lock.txt"
    lock.write_text("pytest==999\n")
    listed = subprocess.run(
        [sys.executable, "-m", "tools.lock", "newer", lock], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert listed.stdout == "nothing is newer than lock.txt\n"


def package(name: str, release: str, *needs: str) -> dict[str, Any]:
    """Of pip's report."""
    return {"name": name, "version": release, "requires_dist": list(needs), "extras": []}


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The program that writes locks, on an index with one package."""

    def resolve(*arguments: str) -> list[dict[str, Any]]:
        assert arguments[-1] == "colour>=1"
        assert "win_amd64" in arguments
        return [package("colour", "1.2")]

    monkeypatch.setattr(lock, "resolve", resolve)
    return lock


def test_a_lock_has_what_another_system_needs(tool: Any) -> None:
    """And no extra that nobody asked for, nor a local label."""
    needs = ['colour>=1; sys_platform == "win32"', 'shade; extra == "shades"', "torch>=2"]
    assert tool.complete([package("My_Tool", "3", *needs), package("torch", "2.13.0+cpu")]) == {
        "my-tool": "3",
        "torch": "2.13.0",
        "colour": "1.2",
    }


def test_a_release_that_will_not_do_with_another_python_is_refused(tool: Any) -> None:
    """One lock is for all."""
    packages = [package("tool", "3", 'numbers>=2; python_version >= "3.13"'), package("numbers", "1.9")]
    with pytest.raises(ValueError, match=r"tool needs numbers>=2 with Python 3\.13, got 1\.9"):
        tool.complete(packages)
