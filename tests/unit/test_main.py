"""Starting the program by its name or its module."""

import subprocess
import sys
from importlib.metadata import entry_points, version

from typer.testing import CliRunner

from pressgauge.cli import app


def test_the_version_is_printed() -> None:
    """``--version`` prints the installed version, without a measurement."""
    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.output) == (0, f"pressgauge {version('pressgauge')}\n")


def test_the_module_is_the_command() -> None:
    """``python -m pressgauge`` equals ``pressgauge``."""
    (command,) = [each for each in entry_points(group="console_scripts") if each.name == "pressgauge"]
    assert command.load() is app
    ran = subprocess.run([sys.executable, "-m", "pressgauge", "--version"], capture_output=True, text=True, check=True)
    assert ran.stdout == f"pressgauge {version('pressgauge')}\n"
