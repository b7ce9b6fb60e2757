"""Locks: every session installs with one, which pins all requirements, without indexes or local builds."""

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
"""Requirements of torch's CUDA build, which no lock pins."""


def pins(lock: str) -> dict[str, str]:
    """Version of each package in a lock."""
    lines = (ROOT / lock).read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


def dependency_group(name: str) -> Iterator[str]:
    """Requirements of a dependency group."""
    for each in PROJECT["dependency-groups"][name]:
        yield from [each] if isinstance(each, str) else dependency_group(each["include-group"])


class Session:
    """A nox session that only records installations and commands."""

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
        """Record a command, and report an available device."""
        self.ran.append(arguments)
        return "True"

    def create_tmp(self) -> str:
        return str(self.folder)

    def chdir(self, folder: Path | str) -> None:
        """Do not change the directory."""


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> dict[str, Callable[..., None]]:
    """Sessions of the noxfile, loaded without nox."""
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
        load_toml=lambda path: tomllib.loads((ROOT / path).read_text(encoding="utf-8")),
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
def test_every_session_installs_with_a_lock(found: dict[str, Callable[..., None]], tmp_path: Path, name: str) -> None:
    """Every session except ``newest`` pins all its requirements and the dependencies of the package with a lock."""
    session = Session(tmp_path)
    parameters = {"train": ["reference"], "mutate": ["hold"], "peers": ["kvpress"]}.get(name, [])
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
        # The build backend is pinned as well.
        assert session.builds["PIP_CONSTRAINT"] == session.builds["PIP_BUILD_CONSTRAINT"] == (ROOT / lock).as_uri()
        asked += PROJECT["build-system"]["requires"]
    for requirement in map(Requirement, asked):
        assert pins(lock)[canonicalize_name(requirement.name)] in requirement.specifier


def test_the_newest_releases_are_listed_before_they_are_tried(
    found: dict[str, Callable[..., None]], tmp_path: Path
) -> None:
    """``newest`` upgrades all packages, lists the newer ones, and then runs the suite."""
    session = Session(tmp_path)
    found["newest"](session)
    (arguments,) = session.installed
    assert arguments[:4] == ("--no-compile", "--upgrade", "--upgrade-strategy", "eager")
    listing, suite = session.ran
    assert listing == ("python", "-m", "tools.lock", "newer", "constraints.txt")
    assert suite == ("python", "-m", "pytest", "--device", "cpu", "--numprocesses", "2", "--dist", "worksteal")


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_pins_only_releases(lock: str) -> None:
    """A lock has no index, file, local label or requirement of torch's CUDA build, and pins torch."""
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
def test_requirements_of_pinned_releases_are_pinned(lock: str) -> None:
    """Requirements of a pinned release are pinned, for releases installed here."""
    locked = pins(lock)
    here = [name for name, release in locked.items() if installed(name) == release]
    missing = set()
    for name in here:
        for requirement in map(Requirement, requires(name) or []):
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                missing |= {canonicalize_name(requirement.name)} - set(locked)
    assert [name for name in missing if not CUDA.match(name)] == []


def installed(name: str) -> str | None:
    """The release installed here, without its local label; None if another."""
    try:
        return Version(version(name)).public
    except PackageNotFoundError:
        return None


def test_newer_releases_are_listed(tmp_path: Path) -> None:
    """Packages newer than the lock are listed with both releases, and no others."""
    lock = tmp_path / "lock.txt"
    lock.write_text(f"# why\npytest==1.0\ntorch=={installed('torch')}\ntransformers==999\nno-such-package==1.0\n")
    listed = subprocess.run(
        [sys.executable, "-m", "tools.lock", "newer", lock], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert listed.stdout == f"newer than lock.txt:\n  pytest  1.0 -> {installed('pytest')}\n"


def test_no_newer_releases_are_reported(tmp_path: Path) -> None:
    """One line reports that nothing is newer."""
    lock = tmp_path / "lock.txt"
    lock.write_text("pytest==999\n")
    listed = subprocess.run(
        [sys.executable, "-m", "tools.lock", "newer", lock], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert listed.stdout == "nothing is newer than lock.txt\n"


def package(name: str, release: str, *needs: str) -> dict[str, Any]:
    """A package of pip's report."""
    return {"name": name, "version": release, "requires_dist": list(needs), "extras": []}


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The tool that writes locks, with an index of one package."""

    def resolve(*arguments: str) -> list[dict[str, Any]]:
        assert arguments[-1] == "colour>=1"
        assert "win_amd64" in arguments
        return [package("colour", "1.2")]

    monkeypatch.setattr(lock, "resolve", resolve)
    return lock


def test_a_lock_covers_other_systems(tool: Any) -> None:
    """A lock includes requirements of other systems, but no unrequested extras or local labels."""
    needs = ['colour>=1; sys_platform == "win32"', 'shade; extra == "shades"', "torch>=2"]
    assert tool.complete([package("My_Tool", "3", *needs), package("torch", "2.13.0+cpu")]) == {
        "my-tool": "3",
        "torch": "2.13.0",
        "colour": "1.2",
    }


def test_conflicts_between_pythons_are_refused(tool: Any) -> None:
    """A release that conflicts with the requirements of another Python is refused."""
    packages = [package("tool", "3", 'numbers>=2; python_version >= "3.13"'), package("numbers", "1.9")]
    with pytest.raises(ValueError, match=r"tool needs numbers>=2 with Python 3\.13, got 1\.9"):
        tool.complete(packages)
