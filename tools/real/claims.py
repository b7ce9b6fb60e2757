"""``python -m tools.real.claims MODEL TEXT``: the claims of docs/comparison.md on a real model, as Markdown."""

from itertools import product
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import track

from tools.comparison.claims import CLAIMS
from tools.comparison.measurements import SCHEDULES, Case, effect, texts
from tools.comparison.page import Comparison, claims, tally
from tools.real.given import Model, Text

app = typer.Typer(add_completion=False)


@app.command()
def main(
    model: Model,
    text: Text,
    documents: Annotated[int, typer.Option(help="documents of the text, at least 2")] = 4,
    tokens: Annotated[int, typer.Option(help="tokens per document")] = 256,
) -> None:
    """Print the verdicts on each claim, and the measurements."""
    case = Case(Path(text).name, model, text, documents, tokens)
    try:
        texts(case)
    except (OSError, ValueError) as error:
        raise typer.BadParameter(str(error)) from error
    asked = list(product(dict.fromkeys((one.press, one.keep_ratio) for one in CLAIMS), SCHEDULES))
    effects = {
        (case.name, press, schedule, ratio): effect(case, press, schedule, ratio)
        for (press, ratio), schedule in track(asked, "measuring")
    }
    found = Comparison([case], effects, {}, "")
    print(f"{documents} documents of {tokens} tokens of {Path(text).name}\n")
    print("\n".join([*tally(found), "", *claims(found)]))


if __name__ == "__main__":
    app()
