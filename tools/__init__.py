"""Programs that write documents, print benchmarks or pin dependencies: ``python -m tools.NAME`` in the project's
folder."""

import sys
from pathlib import Path

_TESTS = str(Path(__file__).parents[1] / "tests")
if _TESTS not in sys.path:
    # Tools share code with tests.
    sys.path.insert(0, _TESTS)
