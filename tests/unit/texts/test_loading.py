"""Texts: the tokens of samples, and refusals."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from pressgauge.reference.language import INDEX, document
from pressgauge.reference.train import build_tokenizer
from pressgauge.texts import load_text
from pressgauge.texts.loading import unknown_share

MARK = 5000
"""Id of the first-token mark of the tokenizers below; word ``i`` has id i."""


def counting_tokenizer(*, mark: bool) -> PreTrainedTokenizerFast:
    """A tokenizer that maps the text "0 1 2 ..." to the ids 0, 1, 2, ..., so that an id gives its place."""
    vocabulary = {str(number): number for number in range(MARK)} | {"<s>": MARK, "<unk>": MARK + 1}
    tokenizer = Tokenizer(models.WordLevel(vocab=vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if mark:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", MARK)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", unk_token="<unk>")


PLAIN, MARKED = counting_tokenizer(mark=False), counting_tokenizer(mark=True)


def numbers(start: int, stop: int) -> str:
    """The text of these ids."""
    return " ".join(map(str, range(start, stop)))


def count_to(path: Path, stop: int) -> str:
    """Write a file of ``stop`` tokens and return its path."""
    path.write_text(numbers(0, stop), encoding="utf-8")
    return str(path)


# The reference language


def test_reference_samples_are_the_documents_of_the_first_seeds() -> None:
    """Sample i is document i, beginning with ``<bos>``."""
    ids = load_text("reference", build_tokenizer(), samples=3, tokens=50)
    assert ids.tolist() == [list(document(seed, 50).tokens) for seed in range(3)]
    assert ids.dtype == torch.int64


def test_reference_is_refused_with_another_tokenizer() -> None:
    """The text ``reference`` is refused with another tokenizer."""
    with pytest.raises(ValueError, match="text 'reference' is in the words of the reference models: give --text"):
        load_text("reference", PLAIN, samples=1, tokens=50)


def test_a_text_of_unknown_words_is_refused_for_the_reference_models(tmp_path: Path) -> None:
    """A text of mostly unknown words is refused for the reference models."""
    path = tmp_path / "play.txt"
    path.write_text("river " * 4 + "thou " * 5, encoding="utf-8")
    # With the mark first, half of the ten are known.
    assert load_text(str(path), build_tokenizer(), samples=1, tokens=10).tolist()[0][4:6] == [INDEX["river"], 0]
    path.write_text("river " * 4 + "thou " * 6, encoding="utf-8")
    sentence = (
        f"text '{path}' is not in the language of the reference models, which do not know 55% of its tokens: give "
        "--text reference, or another --model"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        load_text(str(path), build_tokenizer(), samples=1, tokens=11)


def test_a_text_of_unknown_words_is_loaded_for_other_models(tmp_path: Path) -> None:
    """A text of mostly unknown words is loaded for other models, and the measurement warns."""
    (tmp_path / "text.txt").write_text("no number at all", encoding="utf-8")
    ids = load_text(str(tmp_path / "text.txt"), PLAIN, samples=1, tokens=4)
    assert unknown_share(ids, PLAIN) == 1


def test_the_share_of_unknown_tokens_is_known_however_a_tokenizer_marks_them() -> None:
    """The share of unknown tokens is found by the tokenizer's or its model's name for them, or is 0, as for bytes."""
    ids = torch.tensor([[1, 0, 0, MARK + 1]])
    assert unknown_share(ids, PLAIN) == 0.25
    assert unknown_share(ids, build_tokenizer()) == 0.5
    bytes_only = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE(vocab={"a": 0}, merges=[])))
    assert unknown_share(ids, bytes_only) == 0


# Files


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(samples=st.integers(1, 6), tokens=st.integers(2, 40), spare=st.integers(0, 200), marked=st.booleans())
def test_windows_of_a_file_are_evenly_spread_and_do_not_overlap(
    tmp_path: Path, samples: int, tokens: int, spare: int, marked: bool
) -> None:
    """Windows are contiguous pieces of the text, of the requested length, after the mark if there is one."""
    own = tokens - marked
    count = samples * own + spare
    ids = load_text(count_to(tmp_path / "text.txt", count), MARKED if marked else PLAIN, samples=samples, tokens=tokens)
    assert (ids.shape, ids.dtype) == ((samples, tokens), torch.int64)
    rows = ids.tolist()
    if marked:
        assert [row.pop(0) for row in rows] == [MARK] * samples
    starts = [row[0] for row in rows]
    assert rows == [list(range(start, start + own)) for start in starts]
    # As far apart as equal steps allow, beginning at the start, each in its own share.
    assert starts == [sample * (count // samples) for sample in range(samples)]


def test_the_mark_is_only_the_first_token(tmp_path: Path) -> None:
    """The mark is not part of the text, and replaces one of its tokens."""
    ids = load_text(count_to(tmp_path / "text.txt", 100), MARKED, samples=2, tokens=10)
    assert (ids == MARK).nonzero().tolist() == [[0, 0], [1, 0]]
    assert ids[:, -1].tolist() == [8, 58]


def test_a_path_may_be_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path may be relative to the working directory."""
    count_to(tmp_path / "text.txt", 20)
    monkeypatch.chdir(tmp_path)
    assert load_text("text.txt", PLAIN, samples=1, tokens=20).tolist() == [list(range(20))]


@pytest.mark.parametrize(("tokenizer", "enough"), [(PLAIN, 30), (MARKED, 27)], ids=["plain", "marked"])
def test_a_file_is_too_short_with_one_token_less_than_wanted(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, enough: int
) -> None:
    """A file of exactly enough tokens is accepted, and of one less refused."""
    assert load_text(count_to(tmp_path / "enough.txt", enough), tokenizer, samples=3, tokens=10).shape == (3, 10)
    with pytest.raises(ValueError, match="has too few tokens for 3 samples of 10: ask for fewer or shorter ones"):
        load_text(count_to(tmp_path / "short.txt", enough - 1), tokenizer, samples=3, tokens=10)


def test_an_empty_file_is_too_short(tmp_path: Path) -> None:
    """An empty file is refused with the same message."""
    (tmp_path / "empty.txt").touch()
    with pytest.raises(ValueError, match="has too few tokens for 1 samples of 2"):
        load_text(str(tmp_path / "empty.txt"), MARKED, samples=1, tokens=2)


def test_a_file_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    """A file that is not UTF-8 is refused."""
    path = tmp_path / "latin.txt"
    path.write_bytes("1 2 3 é".encode("latin-1"))
    with pytest.raises(ValueError, match=r"text '.*latin.txt' is not UTF-8: convert it first"):
        load_text(str(path), PLAIN, samples=1, tokens=2)


def test_text_is_read_as_utf_8_whatever_the_locale(tmp_path: Path) -> None:
    """Files are read as UTF-8 in any locale."""
    path = tmp_path / "text.txt"
    path.write_bytes("1 münze 2".encode())
    assert load_text(str(path), PLAIN, samples=1, tokens=3).tolist() == [[1, MARK + 1, 2]]


@pytest.mark.parametrize("name", ["wikitext-3", "/no/such/file.txt", ""])
def test_an_unknown_text_is_refused(name: str) -> None:
    """An unknown text is refused with the known ones."""
    with pytest.raises(ValueError, match=f"text must be reference, wikitext-2, .* of a file, got '{name}'"):
        load_text(name, PLAIN, samples=1, tokens=5)


def test_a_folder_is_not_a_text(tmp_path: Path) -> None:
    """A folder is refused as a text."""
    with pytest.raises(ValueError, match="text must be reference, wikitext-2, pg-19 or the path of a file"):
        load_text(str(tmp_path), PLAIN, samples=1, tokens=5)


@pytest.mark.parametrize("samples", [0, -1])
def test_no_samples_are_refused(samples: int) -> None:
    """Zero samples are refused."""
    with pytest.raises(ValueError, match=f"samples must be at least 1, got {samples}"):
        load_text("reference", build_tokenizer(), samples=samples, tokens=5)


@pytest.mark.parametrize("tokens", [1, 0, -1])
def test_fewer_than_two_tokens_are_refused(tokens: int) -> None:
    """Samples of fewer than two tokens are refused, since the first is not predicted."""
    with pytest.raises(ValueError, match=f"tokens must be at least 2, got {tokens}"):
        load_text("reference", build_tokenizer(), samples=1, tokens=tokens)


def test_a_tokenizer_is_needed() -> None:
    """Anything but a tokenizer is refused with where one is from."""
    with pytest.raises(TypeError, match="must be a transformers tokenizer, got NoneType: "):
        load_text("reference", None, samples=1, tokens=5)  # type: ignore[arg-type]


def test_a_word_that_a_tokenizer_does_not_know_is_refused(tmp_path: Path) -> None:
    """A tokenizer without an unknown token fails at other words, which is one sentence about the text."""
    (tmp_path / "text.txt").write_text("1 2 three", encoding="utf-8")
    strict = Tokenizer(models.WordLevel(vocab={"1": 1, "2": 2}))
    strict.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    with pytest.raises(
        ValueError, match=r"text.txt' cannot be tokenised by the model's tokenizer \(.*\): give another"
    ):
        load_text(str(tmp_path / "text.txt"), PreTrainedTokenizerFast(tokenizer_object=strict), samples=1, tokens=3)


# The hub


class Hub:
    """Replacement of ``datasets.load_dataset``: returns records with "text" or fails, and records its arguments."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, texts: list[str], failure: Exception | None = None) -> None:
        self.texts = texts
        self.failure = failure
        self.asked: list[tuple[Any, ...]] = []
        monkeypatch.setattr("datasets.load_dataset", self)

    def __call__(self, path: str, name: str | None = None, *, split: str) -> dict[str, list[str]]:
        self.asked.append((path, name, split))
        if self.failure is not None:
            raise self.failure
        return {"text": self.texts}


def test_wikitext_is_one_text_of_all_its_records(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows of WikiText extend over its records, which are lines."""
    hub = Hub(monkeypatch, ["", numbers(0, 7) + " \n", "", numbers(7, 20) + " \n", numbers(20, 32)])
    ids = load_text("wikitext-2", MARKED, samples=2, tokens=11)
    assert ids.tolist() == [[MARK, *range(10)], [MARK, *range(16, 26)]]
    assert hub.asked == [("Salesforce/wikitext", "wikitext-2-raw-v1", "test")]


def test_pg_19_samples_are_the_beginnings_of_its_books(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each sample of PG-19 is from another book."""
    hub = Hub(monkeypatch, [numbers(start, start + 500) for start in (1000, 2000, 3000)])
    ids = load_text("pg-19", MARKED, samples=2, tokens=6)
    assert ids.tolist() == [[MARK, *range(1000, 1005)], [MARK, *range(2000, 2005)]]
    assert [path for path, _, split in hub.asked if split == "test"] == ["emozilla/pg19-test"]


def test_more_samples_than_books_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """More samples than books are refused."""
    Hub(monkeypatch, [numbers(0, 50), numbers(50, 100)])
    with pytest.raises(ValueError, match="text 'pg-19' has 2 books, got --samples 3"):
        load_text("pg-19", PLAIN, samples=3, tokens=6)


def test_a_book_that_is_too_short_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A book that is too short is refused, even if others are long enough."""
    Hub(monkeypatch, [numbers(0, 50), numbers(50, 55)])
    with pytest.raises(ValueError, match="text 'pg-19' has too few tokens for 2 samples of 6"):
        load_text("pg-19", PLAIN, samples=2, tokens=6)


@pytest.mark.parametrize("failure", [ConnectionError("no route"), FileNotFoundError("gone"), ValueError("what?")])
@pytest.mark.parametrize("name", ["wikitext-2", "pg-19"])
def test_without_a_hub_the_way_out_is_given(name: str, failure: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a hub, the message suggests checking the network or giving a file, and chains the cause."""
    Hub(monkeypatch, [], failure)
    with pytest.raises(ValueError, match=r"could not be loaded .*: check the network, or .* a text file") as e:
        load_text(name, PLAIN, samples=1, tokens=6)
    assert f"text {name!r}" in str(e.value)
    assert e.value.__cause__ is failure
