"""Texts in files: read as a whole, or in parts from files too large to be tokenised as a whole."""

import codecs
from collections.abc import Callable, Iterator
from pathlib import Path

from torch import Tensor

WHOLE = 4 * 2**20
"""Bytes up to which a file is tokenised as a whole."""
MOST = 16 * 2**20
"""Bytes of a larger file that are read for one sample at most."""
FIRST = 64
"""Bytes per token that are read first; a longer part is read if its tokens are fewer."""
MARGIN = 16
"""Tokens before the end of a part that are not used, since the part may end within a word."""


def read_text(path: Path) -> str:
    """The text of a file.

    Raises:
        ValueError: if it is not text in UTF-8.
    """
    return _decoded(path, path.read_bytes(), 0, whole=True)


def parts(path: Path, samples: int, tokens: int, encode: Callable[[str], Tensor]) -> Iterator[tuple[Tensor, int]]:
    """The beginnings of equal shares of a file, without reading all of it.

    Args:
        path: a UTF-8 file.
        samples: number of shares.
        tokens: tokens wanted of each.
        encode: token ids ``[tokens]`` of a text.

    Yields:
        For each share the first ids ``[tokens]``, fewer if it is too short, and the bytes that were tokenised.

    Raises:
        ValueError: if a part is not text in UTF-8.
    """
    share = path.stat().st_size // samples
    with path.open("rb") as file:
        for sample in range(samples):
            length = 0
            ids = None
            while ids is None or (len(ids) < tokens + MARGIN and length < min(share, MOST)):
                length = min(share, MOST, max(2 * length, FIRST * tokens))
                file.seek(sample * share)
                text = _decoded(path, file.read(length), sample * share, whole=False)
                ids = encode(_from_a_word(text) if sample else text)
            yield ids[:tokens], length


def _decoded(path: Path, content: bytes, start: int, *, whole: bool) -> str:
    """Text of a part of a file from the byte ``start`` on; a part may begin and end within a character."""
    skipped = 0
    if start:
        # Bytes that go on with a character.
        skipped = next((place for place, byte in enumerate(content[:3]) if byte & 0xC0 != 0x80), 0)
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(content[skipped:], final=whole)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"text {str(path)!r} is not UTF-8: convert it first (byte {start + skipped + error.start:,}: "
            f"{error.reason})"
        ) from None
    if "\0" in text:
        raise ValueError(f"text {str(path)!r} is not text: it has NUL characters, as binary files and UTF-16 do")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _from_a_word(text: str) -> str:
    """A text without the rest of a word at its beginning, if it has words."""
    place = next((place for place, character in enumerate(text) if character.isspace()), 0)
    return text[place:]
