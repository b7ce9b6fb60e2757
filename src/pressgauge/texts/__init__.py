"""Evaluation texts: the reference language, WikiText-2, PG-19, or any file."""

from pathlib import Path
from typing import TYPE_CHECKING

from pressgauge import lazy

if TYPE_CHECKING:
    from pressgauge.texts.loading import load_text as load_text

HUB = {
    # name: (dataset, configuration, whether each record is a separate text)
    "wikitext-2": ("Salesforce/wikitext", "wikitext-2-raw-v1", False),
    "pg-19": ("emozilla/pg19-test", None, True),
}

__getattr__ = lazy.attributes(__name__, {"load_text": "loading"})


def check_text_name(name: str) -> None:
    """Raise ``ValueError`` if there is no text of this name."""
    if name != "reference" and name not in HUB and not Path(name).is_file():
        raise ValueError(f"text must be reference, {', '.join(HUB)} or the path of a file, got {name!r}")
