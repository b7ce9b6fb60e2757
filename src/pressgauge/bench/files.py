"""Writing files whole or not at all."""

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory


def write_files(folder: Path, files: Mapping[str, str]) -> None:
    """Put texts in a folder by the names of their files, when all are written; its parent exists."""
    # An existing folder may be on a device of its own, across which no file can be moved.
    beside = folder if folder.exists() else folder.parent
    with TemporaryDirectory(prefix=f".{folder.name}.", dir=beside) as unfinished:
        for name, text in files.items():
            (Path(unfinished) / name).write_text(text, encoding="utf-8")
        folder.mkdir(exist_ok=True)
        for name in files:
            (Path(unfinished) / name).replace(folder / name)
