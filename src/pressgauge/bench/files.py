"""Writing files completely or not at all."""

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory


def write_files(folder: Path, files: Mapping[str, str]) -> None:
    """Write texts to files in a folder after all are prepared; the parent of the folder must exist."""
    # An existing folder may be on another device, to which files cannot be moved.
    beside = folder if folder.exists() else folder.parent
    with TemporaryDirectory(prefix=f".{folder.name}.", dir=beside) as unfinished:
        for name, text in files.items():
            (Path(unfinished) / name).write_text(text, encoding="utf-8")
        folder.mkdir(exist_ok=True)
        for name in files:
            (Path(unfinished) / name).replace(folder / name)
