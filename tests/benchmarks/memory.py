"""Peak memory of a perplexity, in a process of its own: ``python -m benchmarks.memory TOKENS [KEEP_RATIO]``."""

import resource
import subprocess
import sys
from pathlib import Path

from benchmarks.shapes import llama, tokens
from pressgauge import KnormPress, perplexity


def peak(count: int, keep_ratio: float | None) -> int:
    """Bytes that a fresh process needs at most; ``keep_ratio`` None is the plain forward pass."""
    arguments = [str(count)] + ([] if keep_ratio is None else [str(keep_ratio)])
    command = [sys.executable, "-m", "benchmarks.memory", *arguments]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], check=True, capture_output=True, text=True)
    return int(done.stdout.split()[-1])


def main() -> None:
    """Measure in this process and print the bytes."""
    model = llama()
    ids = tokens(model, int(sys.argv[1]))
    if len(sys.argv) > 2:
        perplexity(model, ids, KnormPress(float(sys.argv[2])))
    else:
        perplexity(model, ids, method="plain")
    # Linux counts in units of 1,024 bytes, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)


if __name__ == "__main__":
    main()
