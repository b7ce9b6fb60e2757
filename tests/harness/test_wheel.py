"""The suite in other environments: from the built wheel, in an empty folder, by the commands of the page."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from support.processes import run_together

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "conformance.md").read_text(encoding="utf-8")
OTHERS = [path.read_text(encoding="utf-8") for path in (ROOT / "README.md", ROOT / "docs" / "index.md")]
"""Pages that show the same finding."""
FINDING = r"^```text\n(broken .*)\n( .*)\n```$"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the contents of the wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run(
        [*pip, "wheel", str(ROOT), "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder)], check=True
    )
    (wheel,) = folder.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", str(folder / "site"), str(wheel)], check=True)
    return folder / "site"


def test_the_wheel_has_its_types_and_laws(site: Path) -> None:
    """The wheel contains ``py.typed``, and the laws of ``tests/conformance`` and ``tests/measuring``."""
    package = site / "pressgauge"
    assert (package / "py.typed").is_file()
    for laws in ("conformance", "measuring"):
        names = {path.name for path in (ROOT / "tests" / laws).glob("*.py")}
        assert "__init__.py" in names
        assert any(name.startswith("test_") for name in names)
        assert {path.name for path in (package / laws / "laws").glob("*.py")} == names


def run(site: Path, folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run ``python -m`` with the wheel or the clone first on the path."""
    environment = {**os.environ, "PYTHONPATH": str(site)}
    command = (sys.executable, "-m", *command)
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


PYTEST = ("pytest", "-p", "no:cacheprovider", "-p", "no:randomly")
COMMANDS = {
    "pytest": (*PYTEST, "--pyargs", "pressgauge.conformance", "--subject", "my_module:my_factory"),
    "pressgauge audit": ("pressgauge", "audit", "compressor", "my_module:my_factory", "--", "-p", "no:randomly"),
}


@pytest.fixture(scope="module")
def audits(site: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Any]:
    """How the commands of the page ended on its example, by place and command."""
    example = re.search(r"^```python\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
    assert example is not None
    laws = "prune_after or something_is_evicted or padding or equal_entries"
    folder = tmp_path_factory.mktemp("empty")
    (folder / "my_module.py").write_text(example.group(1), encoding="utf-8")
    lines = [(folder, [*command, "-k", laws]) for command in COMMANDS.values()]
    return {
        (where, name): ended
        for where, source in (("wheel", site), ("clone", ROOT / "src"))
        for name, ended in zip(COMMANDS, run_together(*lines, source=source), strict=True)
    }


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("where", ["wheel", "clone"])
def test_the_example_of_the_page_gives_its_findings(
    audits: dict[tuple[str, str], Any], where: str, command: str
) -> None:
    """From a wheel and from a clone, the commands of the page report the findings shown, and reasons of laws that are
    not applicable."""
    (shown,), *others = (re.findall(FINDING, page, flags=re.MULTILINE) for page in (PAGE, *OTHERS))
    assert others == [[shown]] * len(OTHERS)
    result = audits[where, command]
    assert result.returncode == 1, result.stdout + result.stderr
    lines = result.stdout.splitlines()
    what = "a function over the whole cache, held to schedule step"
    assert f"subject: my_module:my_factory, version unknown: {what}" in lines
    start = next(number for number, line in enumerate(lines) if line.strip("= ") == "laws")
    summary = [line for line in lines[start + 1 :] if line]
    assert summary[:7] == [
        *shown,
        "held            something is evicted or altered",
        "not applicable  of equal entries the earlier is retained",
        "                the subject declares that ties may go either way",
        "not applicable  padding has no effect",
        "                a function over the cache receives no padding mask",
    ]
    assert summary[7] == "1 laws broken, 1 held, 2 not applicable"


def test_other_runs_of_pytest_are_unaffected(site: Path, tmp_path: Path) -> None:
    """Other runs of pytest have none of the options, and do not import torch."""
    (tmp_path / "test_own.py").write_text("import sys\n\ndef test_it():\n    assert 'torch' not in sys.modules\n")
    assert run(site, tmp_path, *PYTEST, "test_own.py").returncode == 0
    assert "--subject" not in run(site, tmp_path, *PYTEST, "--help").stdout
