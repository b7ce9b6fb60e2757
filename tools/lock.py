"""Write a file of constraints, or list where an environment is newer than one.

``python -m tools.lock write FILE REQUIREMENT...`` and ``python -m tools.lock newer FILE``; see ``nox -s lock`` and
``nox -s newest``.
"""

import json
import subprocess
import sys
import tempfile
from importlib.metadata import distributions, version
from itertools import product
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

PYTHONS = ("3.11", "3.12", "3.13", "3.14")
# Values of markers, by pip's name of the platform. The first is for the Linux machine on which this runs.
PLATFORMS = {
    "": {"sys_platform": "linux", "platform_system": "Linux", "os_name": "posix"},
    "macosx_14_0_arm64": {"sys_platform": "darwin", "platform_system": "Darwin", "os_name": "posix"},
    "win_amd64": {"sys_platform": "win32", "platform_system": "Windows", "os_name": "nt"},
}
HEAD = """\
# Every package of every session that installs with this file. `nox -s lock` writes it: do not edit it by hand.
# For Python 3.11 to 3.14 on Linux, macOS and Windows. torch has no local label, so each machine takes the build of
# its own index. Requirements of torch's CUDA build (cuda-*, nvidia-*, triton) are left out, since torch's metadata pins
# them. pip is left out too; this file was written by pip {pip}.
"""


def pip(*arguments: str) -> None:
    """Run this environment's pip.

    Raises:
        CalledProcessError: if it fails.
    """
    subprocess.run([sys.executable, "-m", "pip", "--quiet", *arguments], check=True)


def resolve(*arguments: str) -> list[dict[str, Any]]:
    """Metadata and extras of the packages that pip would install into an empty environment."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        pip("install", "--dry-run", "--ignore-installed", "--report", str(report), *arguments)
        packages = json.loads(report.read_text(encoding="utf-8"))["install"]
    return [{**package["metadata"], "extras": package.get("requested_extras", [])} for package in packages]


def only_for(python: str, platform: str, folder: str) -> list[str]:
    """Options with which pip takes wheels for another Python and platform, without dependencies."""
    wheels = ["--no-deps", "--only-binary", ":all:", "--target", folder, "--python-version", python]
    return [*wheels, "--platform", platform] if platform else wheels


def needs(package: dict[str, Any], python: str, platform: str) -> list[Requirement]:
    """Requirements of a package for a Python and a platform, without markers."""
    where = {"python_version": python, "python_full_version": f"{python}.0", **PLATFORMS[platform]}
    found = []
    for line in package.get("requires_dist", []):
        requirement = Requirement(line)
        marker, requirement.marker = requirement.marker, None
        if marker is None or any(marker.evaluate({**where, "extra": extra}) for extra in ["", *package["extras"]]):
            found.append(requirement)
    return found


def complete(packages: list[dict[str, Any]]) -> dict[str, str]:
    """Versions of these packages and of their dependencies on all platforms and Pythons.

    Raises:
        ValueError: if a package needs another version there.
    """
    pins: dict[str, str] = {}
    waiting = list(packages)
    while waiting:
        # A local label names a build of one index.
        pins |= {canonicalize_name(each["name"]): Version(each["version"]).public for each in waiting}
        found = []
        for package, python, platform in product(waiting, PYTHONS, PLATFORMS):
            for requirement in needs(package, python, platform):
                name = canonicalize_name(requirement.name)
                if name not in pins:
                    with tempfile.TemporaryDirectory() as folder:
                        found += resolve(*only_for(python, platform, folder), str(requirement))
                    pins[name] = found[-1]["version"]
                elif pins[name] not in requirement.specifier:
                    raise ValueError(f"{package['name']} needs {requirement} with Python {python}, got {pins[name]}")
        waiting = found
    return pins


def read(path: Path) -> dict[str, str]:
    """Version of each package in a file of constraints."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def write(path: Path, requirements: list[str]) -> None:
    """Pin the requirements and their dependencies on every platform."""
    pins = complete(resolve(*requirements))
    lines = [f"{name}=={pins[name]}\n" for name in sorted(pins)]
    path.write_text(HEAD.format(pip=version("pip")) + "".join(lines), encoding="utf-8")


def installed() -> dict[str, str]:
    """Version of each package of this environment, without local labels."""
    found = distributions()
    return {canonicalize_name(each.metadata["Name"]): Version(each.version).public for each in found}


def newer(path: Path) -> str:
    """Table of packages of this environment that are newer than their pins."""
    pins = read(path)
    rows = [
        (name, pins[name], found)
        for name, found in sorted(installed().items())
        if name in pins and Version(found) > Version(pins[name])
    ]
    if not rows:
        return f"nothing is newer than {path.name}"
    width = max(len(name) for name, _, _ in rows)
    lines = [f"  {name:{width}}  {locked} -> {found}" for name, locked, found in rows]
    return "\n".join([f"newer than {path.name}:", *lines])


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["write", file, *requirements]:
            write(Path(file), requirements)
        case ["newer", file]:
            print(newer(Path(file)))
        case _:
            sys.exit(__doc__)
