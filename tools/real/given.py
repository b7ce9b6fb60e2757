"""Arguments of the tools of this folder: a model and a text."""

from collections.abc import Iterable
from typing import Annotated, Any

import typer
from torch import Tensor

from pressgauge.models import load
from pressgauge.texts import load_text

Model = Annotated[str, typer.Argument(help="a model, as for pressgauge measure")]
Text = Annotated[str, typer.Argument(help="a text, as for pressgauge measure")]


def loaded(model: str, text: str, tokens: int, dtype: str) -> tuple[Any, Tensor]:
    """The model, and the first tokens of the text: ``[1, tokens]``.

    Raises:
        BadParameter: if one of them cannot be loaded.
    """
    try:
        found, tokenizer = load(model, dtype=dtype)
        return found, load_text(text, tokenizer, samples=1, tokens=tokens)
    except (OSError, ValueError) as error:
        raise typer.BadParameter(str(error)) from error


def show(lines: Iterable[str]) -> None:
    """Print lines as they come."""
    for line in lines:
        print(line, flush=True)
