"""``python -m tools.real.agreement MODEL TEXT``: perplexities of kvpress's presses and ours, as Markdown.

Needs the group ``peers`` of ``pyproject.toml``.
"""

from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import typer
from torch import Tensor

from peers.pairs import KEEP_RATIO, LATER, PAIRS, PROMPT, agreement
from tools.real.given import Model, Text, loaded, show


def rows(model: Any, ids: Tensor) -> Iterator[str]:
    """Perplexities by pair of presses."""
    yield "| press | ours | kvpress's | ours, with kvpress's ties | ties retained otherwise |"
    yield "| --- | ---: | ---: | ---: | ---: |"
    for pair in PAIRS:
        found = agreement(pair, model, ids, PROMPT, KEEP_RATIO)
        yield f"| {pair} | {found.mine:.6f} | {found.own:.6f} | {found.same:.6f} | {found.differing} |"


app = typer.Typer(add_completion=False)


@app.command()
def main(
    model: Model,
    text: Text,
) -> None:
    """Print the table."""
    found, ids = loaded(model, text, PROMPT + LATER, "float64")
    releases = ", ".join(f"{name} {version(name)}" for name in ("kvpress", "transformers", "torch"))
    lengths = f"half of a prompt of {PROMPT} tokens retained, {LATER} scored"
    print(f"{Path(text).name}, {lengths}, float64, {releases}\n")
    show(rows(found, ids))


if __name__ == "__main__":
    app()
