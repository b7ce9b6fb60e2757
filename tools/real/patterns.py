"""``python -m tools.real.patterns MODEL TEXT``: published patterns on a real model, as Markdown.

- Attention sinks: perplexity of StreamingLLM without and with its first tokens (arXiv 2309.17453, table 2).
- KnormPress's assumption: keys of low norm receive much attention (arXiv 2406.11430).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from torch import Tensor

from pressgauge import StreamingLLMPress, perplexity
from pressgauge.models.windows import windows
from pressgauge.norm_attention import norm_attention
from tools.real.given import Model, Text, loaded, show

SINKS = (0, 1, 2, 4, 8)
RATIO = 0.001
"""So small that a layer holds ``prune_after`` entries, as StreamingLLM's cache of a fixed size does."""

NORM_TOKENS = 512
"""Tokens of the text of which norms and attention are compared, at most the model's window."""


def of_sinks(model: Any, ids: Tensor, held: int) -> Iterator[str]:
    """Perplexities by the number of sinks, with the layers that evict: all, and those without a window."""
    local = tuple(windows(model.config))
    yield f"| sinks | all layers hold {held} | only layers without a window hold {held} |"
    yield "| ---: | ---: | ---: |"
    for sinks in SINKS:
        # Without windows, both are the same layers.
        presses = {
            skip: StreamingLLMPress(RATIO, prune_after=held, sinks=sinks, skip_layers=skip) for skip in ((), local)
        }
        found = {skip: perplexity(model, ids, press).ppl for skip, press in presses.items()}
        yield f"| {sinks} | {found[()]:,.2f} | {found[local]:,.2f} |"
    yield f"| uncompressed | {perplexity(model, ids).ppl:,.2f} | |"


def of_norms(model: Any, ids: Tensor) -> Iterator[str]:
    """Correlation of key norm and attention received, by layer."""
    local = windows(model.config)
    yield "| layer | window | correlation by KV head |"
    yield "| ---: | ---: | --- |"
    for layer, heads in enumerate(norm_attention(model, ids).tolist()):
        window = local[layer].size if layer in local else ""
        yield f"| {layer} | {window} | " + ", ".join(f"{one:+.2f}" for one in heads) + " |"


app = typer.Typer(add_completion=False)


@app.command()
def main(
    model: Model,
    text: Text,
    tokens: Annotated[int, typer.Option(help="length of the text")] = 8192,
    held: Annotated[int, typer.Option(help="entries that a layer holds")] = 256,
) -> None:
    """Print both tables."""
    found, ids = loaded(model, text, tokens, "float32")
    print(f"{Path(model).name}, {tokens:,} tokens of {Path(text).name}, float32\n")
    # Beyond a window, keys would receive less attention the older they are.
    show(of_norms(found, ids[:, :NORM_TOKENS]))
    print()
    show(of_sinks(found, ids, held))


if __name__ == "__main__":
    app()
