"""The suite in other people's environments: from the built wheel, in an empty folder, as the page says."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "conformance.md").read_text(encoding="utf-8")
OTHERS = [path.read_text(encoding="utf-8") for path in (ROOT / "README.md", ROOT / "docs" / "index.md")]
"""Pages that show the same finding."""
FINDING = r"^```text\n(broken .*)\n( .*)\n```$"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the wheel installs."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run(
        [*pip, "wheel", str(ROOT), "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder)], check=True
    )
    (wheel,) = folder.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", str(folder / "site"), str(wheel)], check=True)
    return folder / "site"


def run(site: Path, folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """``python -m`` with what the wheel, or the clone, has in front of what is installed."""
    environment = {**os.environ, "PYTHONPATH": str(site)}
    command = (sys.executable, "-m", *command)
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


PYTEST = ("pytest", "-p", "no:cacheprovider", "-p", "no:randomly")
COMMANDS = {
    "pytest": (*PYTEST, "--pyargs", "pressgauge.conformance", "--subject", "my_module:my_factory"),
    "pressgauge audit": ("pressgauge", "audit", "compressor", "my_module:my_factory", "--", "-p", "no:randomly"),
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("where", ["wheel", "clone"])
def test_the_example_of_the_page_is_found_out(site: Path, tmp_path: Path, where: str, command: str) -> None:
    """The compressor of the page, the commands of the page, from a wheel and from a clone, as an editable install has
    it: the first lines of the summary are those that the page shows; laws that do not apply say why."""
    place = site if where == "wheel" else ROOT / "src"
    example = re.search(r"^```python\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
    (shown,), *others = (re.findall(FINDING, page, flags=re.MULTILINE) for page in (PAGE, *OTHERS))
    assert example is not None
    assert others == [[shown]] * len(OTHERS)
    (tmp_path / "my_module.py").write_text(example.group(1), encoding="utf-8")
    laws = "prune_after or something_is_evicted or padding or equal_entries"
    result = run(place, tmp_path, *COMMANDS[command], "-k", laws)
    assert result.returncode == 1, result.stdout + result.stderr
    lines = result.stdout.splitlines()
    what = "a function over the whole cache, held to schedule step"
    assert f"subject: my_module:my_factory, version unknown: {what}" in lines
    start = next(number for number, line in enumerate(lines) if line.strip("= ") == "laws")
    summary = [line for line in lines[start + 1 :] if line]
    assert summary[:7] == [
        *shown,
        "held            something is evicted",
        "not applicable  of equal entries the earlier stay",
        "                the subject declares that ties may go either way",
        "not applicable  padding counts for nothing",
        "                a function over the cache is never told what is padding",
    ]
    assert summary[7] == "1 laws broken, 1 held, 2 not applicable"


def test_other_runs_of_pytest_know_nothing_of_it(site: Path, tmp_path: Path) -> None:
    """Where the suite is not what is run, its options are not there, and torch is not imported for it."""
    (tmp_path / "test_own.py").write_text("import sys\n\ndef test_it():\n    assert 'torch' not in sys.modules\n")
    assert run(site, tmp_path, *PYTEST, "test_own.py").returncode == 0
    assert "--subject" not in run(site, tmp_path, *PYTEST, "--help").stdout
