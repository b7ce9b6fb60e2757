"""Every file of the baselines is read by a test."""

import re
from pathlib import Path

from regression.provenance import BASELINES

FILES = (
    r"(cpu|mps|cuda/sm_\d+)/"
    r"(perplexity-(reference|reference-neox|tinystories|gemma)(-float32|-bfloat16)?|tasks-gemma|decoding|entries|time"
    r"|cost-torch-\d+\.\d+\.\d+-transformers-\d+\.\d+\.\d+)"
    r"\.yml"
)
"""Names that tests read."""


def test_no_file_is_stale() -> None:
    """Every baseline is read by a test."""
    found = [path.relative_to(BASELINES).as_posix() for path in BASELINES.rglob("*") if path.is_file()]
    stale = [name for name in found if name != "README.md" and not re.fullmatch(FILES, name)]
    assert not stale, (
        f"no test reads {', '.join(sorted(stale))}: delete what is stale, or name it in {Path(__file__).name}"
    )
