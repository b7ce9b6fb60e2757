"""``python -m tools.real.speed MODEL TEXT``: times on a real model, relative to those without a press."""

from collections.abc import Iterator
from functools import partial
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from pressgauge import Press, perplexity
from pressgauge.presses import PRESSES
from pressgauge.timing import measure_timing
from regression.provenance import processor
from tools.benchmarks.onepass import compare
from tools.real.given import Model, Text, loaded, show

RATIO, PRUNE_AFTER = 0.5, 64


def press_of(name: str) -> Press:
    """A press that evicts in all layers after every token."""
    return PRESSES[name](RATIO, prune_after=PRUNE_AFTER, schedule="budget")


def times(model: Any, ids: Tensor, new_tokens: int, pairs: int) -> Iterator[str]:
    """Ratios by press: of one pass to a plain forward pass with the same loss, and of TPOT to that of ``DynamicCache``.

    Args:
        model: the model.
        ids: ``[1, T]``, the text of the one pass, and the prompt of decoding.
        new_tokens: tokens to decode.
        pairs: pairs of runs, interleaved.
    """
    yield "| press | one pass / plain | TPOT / that of `DynamicCache` |"
    yield "| --- | ---: | ---: |"
    plain = partial(perplexity, model, ids, method="plain")
    for name in PRESSES:
        press = press_of(name)
        once = compare(partial(perplexity, model, ids, press), plain, pairs)
        decoded = measure_timing(model, ids, press, new_tokens, pairs=pairs)
        yield f"| {name} | {once} | {decoded.tpot_ratio} |"


app = typer.Typer(add_completion=False)


@app.command()
def main(
    model: Model,
    text: Text,
    tokens: Annotated[int, typer.Option(help="length of the text")] = 256,
    new_tokens: Annotated[int, typer.Option(help="tokens to decode after it")] = 16,
    pairs: Annotated[int, typer.Option(help="pairs of runs")] = 3,
) -> None:
    """Print the table."""
    found, ids = loaded(model, text, tokens, "float32")
    machine = f"{processor(torch.device('cpu'))}, {torch.get_num_threads()} threads"
    print(f"{tokens} tokens, then {new_tokens} decoded, medians of {pairs} pairs, {machine}\n")
    show(times(found, ids, new_tokens, pairs))


if __name__ == "__main__":
    app()
