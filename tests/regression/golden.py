"""Comparison of measured values with a baseline, or recording of one."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from pytest_regressions.common import perform_regression_check

from regression.baseline import Baseline, Change, Rows, changes, read, table, updated, write
from regression.plugin import PROPERTY
from regression.provenance import BASELINES, folder, provenance

OBTAINED = BASELINES.parent / "obtained"
"""Folder for differing files, with the same subfolders."""


@dataclass
class Golden:
    """Compares measured values with the baseline of a device, or records them with ``--regen-all``.

    Attributes:
        request: of the test.
        device: the device.
        by: the command that records.
    """

    request: pytest.FixtureRequest
    device: torch.device
    by: str

    @property
    def recording(self) -> bool:
        """Whether baselines are recorded."""
        return bool(self.request.config.getoption("regen_all"))

    def path(self, name: str) -> Path:
        """File of a baseline."""
        return folder(self.device) / f"{name}.yml"

    def note(self, found: list[Change]) -> None:
        """Add changes to the table at the end of the run."""
        self.request.node.user_properties.append((PROPERTY, [asdict(change) for change in found]))

    def recorded(self, name: str) -> Baseline | None:
        """Baseline of this name, or None while recording; otherwise a missing baseline fails the test."""
        path = self.path(name)
        if path.is_file():
            return read(path)
        if not self.recording:
            file = path.relative_to(BASELINES.parent)
            pytest.fail(f"there is no baseline {file}: `{self.by}` makes it", pytrace=False)
        return None

    def check(
        self, name: str, measure: Callable[[], Rows], tolerance: Callable[[], Mapping[str, float]], dtype: str
    ) -> None:
        """Compare values with the baseline, or record values that are reproducible within tolerance.

        Args:
            name: name of the file, without its ending.
            measure: function that returns the rows.
            tolerance: relative tolerance to record, by field; comparisons use the recorded one.
            dtype: dtype of the model.
        """
        path = self.path(name)
        before = self.recorded(name)
        # Keep the tolerance, since the obtained file may replace the baseline.
        allowed = before.tolerance if before is not None and not self.recording else tolerance()
        now = Baseline(provenance(self.device, dtype, self.by), allowed, measure())
        if self.recording and (unsteady := list(changes(name, now, measure()))):
            self.note(unsteady)
            pytest.fail(f"{name} does not repeat itself, so that it is not recorded:\n{table(unsteady)}", pytrace=False)
        found = [] if before is None else list(changes(name, before, now.rows))
        self.note(found)
        obtained = OBTAINED / path.relative_to(BASELINES)

        def dump(target: Path) -> None:
            write(updated(before, now), target)

        def compare(obtained: Path, expected: Path) -> None:
            if found:
                where = obtained.relative_to(BASELINES.parent)
                raise AssertionError(f"{name} is not as recorded; what came out is in {where}:\n{table(found)}")
            obtained.unlink()

        if not self.recording:
            obtained.parent.mkdir(parents=True, exist_ok=True)
        # The plugin's data folders are not used, since files are given by path.
        nowhere: Any = path.parent
        perform_regression_check(
            nowhere, nowhere, self.request, compare, dump, ".yml", fullpath=path, obtained_filename=obtained
        )
