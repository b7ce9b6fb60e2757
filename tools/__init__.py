"""Programs that write documents, print benchmarks or hold locks: ``python -m tools.NAME`` in the project's folder."""

import sys
from pathlib import Path

_TESTS = str(Path(__file__).parents[1] / "tests")
if _TESTS not in sys.path:
    # What tools share with tests lies there.
    sys.path.insert(0, _TESTS)
