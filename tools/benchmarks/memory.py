"""Peak memory of a separate process: ``python -m tools.benchmarks.memory WHAT TOKENS [PRESS KEEP_RATIO]``."""

import resource
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Literal, get_args

import torch

from pressgauge import perplexity
from pressgauge.presses import PRESSES
from tools.benchmarks.shapes import llama, tokens

What = Literal["perplexity", "prompt"]
"""A one-pass perplexity, or a prompt fed to a cache."""


def peak(what: What, count: int, press: str | None = None, keep_ratio: float = 0.5) -> int:
    """Peak memory of a new process in bytes, for ``count`` tokens; without a press, of a plain forward pass or an
    uncompressed cache."""
    arguments = [what, str(count), *([] if press is None else [press, str(keep_ratio)])]
    command = [sys.executable, "-m", "tools.benchmarks.memory", *arguments]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], check=True, capture_output=True, text=True)
    return int(done.stdout.split()[-1])


def main() -> None:
    """Measure this process, and print the bytes."""
    what, count, *pressed = sys.argv[1:]
    assert what in get_args(What), what
    press = PRESSES[pressed[0]](keep_ratio=float(pressed[1])) if pressed else None
    if what == "perplexity":
        model = llama()
        perplexity(model, tokens(model, int(count)), press, method="onepass" if press else "plain")
    else:
        # Scoring needs its memory in one layer at a time.
        model = llama(layers=2)
        with torch.no_grad(), press(model) if press else nullcontext():
            model(tokens(model, int(count)), logits_to_keep=1, use_cache=True)
    # Linux counts in units of 1,024 bytes, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)


if __name__ == "__main__":
    main()
