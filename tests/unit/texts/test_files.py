"""Large texts are read in parts, with the tokens of the whole."""

import random
import resource
import time
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from pressgauge.texts import files, load_text

WORDS = [
    *"the river ran down, past old mills and \u00fcber stone bridges 12,345".split(),
    "times\nuntil",
    "\u4f60\u597d",
]


def text(words: int, seed: int = 0) -> str:
    """Random words, some of several bytes per character."""
    draw = random.Random(seed)
    return " ".join(draw.choice(WORDS) for _ in range(words))


def byte_pairs() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with merges, trained on such words."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator([text(2000, seed=1)], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


TOKENIZER = byte_pairs()


def encoded(of: str) -> list[int]:
    """Ids of a whole text."""
    return list(TOKENIZER(of).input_ids)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(words=st.integers(60, 400), samples=st.integers(1, 4), tokens=st.integers(2, 20), seed=st.integers(0, 99))
def test_parts_of_a_large_file_are_parts_of_the_tokens_of_the_whole(
    tmp_path: Path, words: int, samples: int, tokens: int, seed: int
) -> None:
    """The first sample is the beginning of the whole text's tokens, and each is in its share, in order."""
    whole = text(words, seed)
    path = tmp_path / "text.txt"
    path.write_text(whole, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "WHOLE", 10)
        ids = load_text(str(path), TOKENIZER, samples=samples, tokens=tokens)
    assert ids.shape == (samples, tokens)
    assert ids[0].tolist() == encoded(whole)[:tokens]
    share = len(whole.encode()) // samples
    for sample, row in enumerate(ids.tolist()):
        # Bytes, since a share may end within a character.
        piece = str(TOKENIZER.decode(row, clean_up_tokenization_spaces=False)).encode().rstrip(b"\xef\xbf\xbd")
        found = whole.encode().find(piece, sample * share)
        longest = max(len(word.encode()) for word in WORDS) + 1
        assert sample * share <= found <= sample * share + longest
        assert found + len(piece) <= len(whole.encode())


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_line_ends_are_those_of_text_files(tmp_path: Path, end: str) -> None:
    """Any line end is a line break, as when Python reads a text file."""
    (tmp_path / "text.txt").write_bytes(f"the sea{end}the river{end}".encode())
    assert files.read_text(tmp_path / "text.txt") == "the sea\nthe river\n"


def test_a_part_of_few_tokens_is_read_further(tmp_path: Path) -> None:
    """A beginning of few tokens, such as letters without spaces, is read on until the tokens are enough."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"sea": 0, "?": 1}, unk_token="?")), unk_token="?"
    )
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    path = tmp_path / "text.txt"
    path.write_text("x" * 50_000 + " sea" * 100, encoding="utf-8")
    ((found, length),) = files.parts(path, 1, 5, lambda part: torch.tensor(tokenizer(part).input_ids))
    assert found.tolist() == [1, 0, 0, 0, 0]
    assert length == 50_400


@pytest.mark.parametrize(
    ("samples", "words"),
    [
        (10**12, "(it has 4,999 bytes)"),
        (1000, "of sample 1 have "),
        (10, "(499 bytes of sample 1 have "),
    ],
)
def test_a_large_file_that_is_too_short_says_how_long_it_is(
    tmp_path: Path, samples: int, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any number of samples is refused at the first share that is too short, with its bytes and tokens."""
    monkeypatch.setattr(files, "WHOLE", 10)
    path = tmp_path / "text.txt"
    path.write_bytes(text(2000).encode()[:4990].decode(errors="ignore").encode().ljust(4999))
    began = time.monotonic()
    with pytest.raises(ValueError, match=f"has too few tokens for {samples} samples of 500: ask for fewer") as error:
        load_text(str(path), TOKENIZER, samples=samples, tokens=500)
    assert words in str(error.value)
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("whole", [10, 4 * 2**20])
@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"the sea \xff the river", r"is not UTF-8: convert it first \(byte 8: invalid start byte\)"),
        ("the sea".encode("utf-16"), r"is not UTF-8: convert it first \(byte 0: "),
        ("the sea and the river".encode("utf-16-le"), "is not text: it has NUL characters, as binary files"),
        (b"\x7fELF" + b"\0" * 40, "is not text: it has NUL characters"),
        (b"the sea \xed\xa0\x80 the river", r"is not UTF-8: convert it first \(byte 8: "),
    ],
)
def test_a_binary_file_is_refused(
    tmp_path: Path, content: bytes, sentence: str, whole: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files of another encoding or none are refused, as a whole and in parts."""
    monkeypatch.setattr(files, "WHOLE", whole)
    (tmp_path / "text.txt").write_bytes(content)
    with pytest.raises(ValueError, match=sentence):
        load_text(str(tmp_path / "text.txt"), TOKENIZER, samples=1, tokens=3)


def test_a_few_tokens_of_200_megabytes_take_seconds_and_little_memory(tmp_path: Path) -> None:
    """64 tokens of a file of 200 MB are read in under 10 seconds, in less memory than the file has."""
    path = tmp_path / "text.txt"
    block = (text(20_000) + "\n").encode()
    with path.open("wb") as file:
        for _ in range(200 * 10**6 // len(block) + 1):
            file.write(block)
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    ids = load_text(str(path), TOKENIZER, samples=3, tokens=64)
    assert ids[0].tolist() == encoded(block.decode()[:5000])[:64]
    assert time.monotonic() - began < 10
    # Kilobytes on Linux, bytes on macOS.
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < 100 * 1024
