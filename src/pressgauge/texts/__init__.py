"""Evaluation texts: the reference language, WikiText-2, PG-19, or any file."""

import os
import stat
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
    """Raise ``ValueError`` if there is no text of this name, or its file cannot be read."""
    if name == "reference" or name in HUB:
        return
    if reason := _unreadable(name):
        raise ValueError(
            f"text must be reference, {', '.join(HUB)} or the path of a file, got {name!r} ({reason}): give another "
            "path, or mend this one"
        )


def _unreadable(name: str) -> str:
    """Why a path is no file that can be read; empty if it is one."""
    try:
        mode = os.stat(name).st_mode
        if stat.S_ISDIR(mode):
            return "it is a folder"
        if not stat.S_ISREG(mode):
            return "it is a pipe or a device"
        with open(name, "rb"):
            return ""
    except OSError as error:
        return str(error.strerror)
    except ValueError:
        return "a path has no NUL character"
