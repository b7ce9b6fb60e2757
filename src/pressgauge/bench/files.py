"""Writing files completely or not at all, and checks before the work whether they can be written."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

UNFINISHED = ".pressgauge-"
"""Prefix of the folder in which files are prepared."""

GENERATOR = "pressgauge"
"""What the pages of this package name as their generator."""
MARKED = 4096
"""Bytes of a page in which they name it."""


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name a file in errors of the operating system that name none, such as those of a full disk."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise


def check_writable(option: str, path: Path) -> None:
    """Raise ``ValueError`` unless a file can be created at a path, by creating one in its folder.

    Args:
        option: the option that names it, for errors.
        path: a file or a new folder; the parent must exist.
    """
    try:
        # The name is checked as well: it may be too long.
        path.with_name(f"{path.name}.unfinished").lstat()
    except FileNotFoundError:
        pass
    except OSError as error:
        raise ValueError(
            f"{option} must be a path that can be written, got {str(path)!r} ({error.strerror}): give another one"
        ) from error
    try:
        with TemporaryDirectory(prefix=UNFINISHED, dir=path.parent) as folder:
            (Path(folder) / "file").write_bytes(b"1")
    except OSError as error:
        raise ValueError(
            f"{option} must be in a folder that can be written, got {str(path)!r} ({error.strerror}): free some space, "
            "change the folder's permissions, or give another one"
        ) from error


def check_page(folder: Path, names: Iterable[str] = (), option: str = "--report") -> None:
    """Raise ``ValueError`` if a page in a folder would replace files of another origin.

    Args:
        folder: the folder, which need not exist.
        names: files of the page next to its ``report.html``.
        option: the option that names the folder, for errors.
    """
    page = folder / "report.html"
    if page.is_file():
        mark = f'<meta name="generator" content="{GENERATOR}">'
        if mark.encode() not in page.read_bytes()[:MARKED]:
            raise ValueError(
                f"{option} replaces pages of pressgauge only, got {str(page)!r} of another origin: give another "
                "folder, or move it away"
            )
    elif strange := [name for name in ("report.html", *names) if (folder / name).exists()]:
        raise ValueError(
            f"{option} replaces pages of pressgauge only, got {str(folder)!r} with {strange[0]!r} and without a page: "
            "give another folder, or move it away"
        )


def write_files(folder: Path, files: Mapping[str, str | bytes]) -> None:
    """Write texts and bytes to files in a folder after all are prepared; the parent of the folder must exist.

    Raises:
        OSError: if they cannot be written, with the name of the file.
    """
    # An existing folder may be on another device, to which files cannot be moved.
    beside = folder if folder.exists() else folder.parent
    with TemporaryDirectory(prefix=UNFINISHED, dir=beside) as unfinished:
        for name, content in files.items():
            with naming(folder / name):
                (Path(unfinished) / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        folder.mkdir(exist_ok=True)
        for name in files:
            (Path(unfinished) / name).replace(folder / name)
