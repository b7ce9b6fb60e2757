"""The reference language: its probabilities are those of its grammar, which this file parses independently."""

import hashlib
import json
import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pressgauge.reference.language import FIRST_WORDS, NAMES, SUCCESSORS, TOKENS, VALUES, WORDS, Document, document

SEEDS = st.integers(0, 2**33)
MANY = range(1000, 1060)


def in_words(text: Document) -> list[str]:
    """The document's tokens as words."""
    return [TOKENS[token] for token in text.tokens]


def distributions(words: list[str]) -> Iterator[dict[str, float]]:
    """Probabilities of all possible tokens at each place after ``<bos>``, from the grammar alone.

    Several derivations of the same token add up.
    """
    facts: dict[str, str] = {}
    sentence: list[str] = []
    for word in words[1:]:
        ways: list[tuple[str, float]] = []
        place = len(sentence)
        if not place:
            remember = 0.1 if len(facts) < len(NAMES) else 0.0
            recall = 0.5
            if not facts:
                remember, recall = remember + recall, 0.0
            ways += [("remember", remember), ("recall", recall)]
            ways += [(first, (1 - remember - recall) / 8) for first in FIRST_WORDS]
        elif sentence[0] in ("remember", "recall"):
            new = sentence[0] == "remember"
            if place == 1:
                names = [name for name in NAMES if (name not in facts) == new]
                ways += [(name, 1 / len(names)) for name in names]
            elif place == 2:
                ways += [(value, 1 / 32) for value in VALUES] if new else [(facts[sentence[1]], 1.0)]
            else:
                ways += [(".", 1.0)]
        else:
            shares = zip(SUCCESSORS[sentence[-1]], (0.5, 0.25, 0.15, 0.1), strict=True)
            ways += [(".", 0.2), *((successor, 0.8 * share) for successor, share in shares)]
        chances: defaultdict[str, float] = defaultdict(float)
        for token, chance in ways:
            chances[token] += chance
        yield chances
        sentence.append(word)
        if word == ".":
            if sentence[0] == "remember":
                facts[sentence[1]] = sentence[2]
            sentence = []


def sentences(words: list[str]) -> list[list[str]]:
    """Complete sentences of a document, without their stops."""
    found: list[list[str]] = [[]]
    for word in words[1:]:
        if word == ".":
            found.append([])
        else:
            found[-1].append(word)
    return found[:-1]


@given(seed=SEEDS, length=st.integers(2, 400))
def test_nll_is_that_of_the_grammar(seed: int, length: int) -> None:
    """The NLL of each token is that of its probability given all previous tokens, to 1e-12."""
    text = document(seed, length)
    words = in_words(text)
    assert len(words) == len(text.nll) == len(text.recalled) == length
    assert (words[0], text.nll[0]) == ("<bos>", 0.0)
    for word, nll, chances in zip(words[1:], text.nll[1:], distributions(words), strict=True):
        assert math.fsum(chances.values()) == pytest.approx(1, abs=1e-12)
        assert nll == pytest.approx(-math.log(chances[word]), abs=1e-12)


def test_nll_is_that_of_the_grammar_when_all_names_are_used_up() -> None:
    """The NLL is correct in a document so long that no names are left."""
    text = document(3, 12_000)
    words = in_words(text)
    for word, nll, chances in zip(words[1:], text.nll[1:], distributions(words), strict=True):
        assert nll == pytest.approx(-math.log(chances[word]), abs=1e-12)
    assert {sentence[1] for sentence in sentences(words) if sentence[0] == "remember"} == set(NAMES)
    last = max(index for index, word in enumerate(words) if word == "remember")
    assert words.count("recall") > 64
    assert "recall" in words[last + 4 :], "facts are asked for after the last one was stated"


def test_the_mean_nll_of_many_documents_is_the_entropy_of_the_grammar() -> None:
    """The mean NLL of documents equals the entropy of the grammar up to sampling error."""
    differences = []
    for seed in MANY:
        text = document(seed, 600)
        for nll, chances in zip(text.nll[1:], distributions(in_words(text)), strict=True):
            expected = -math.fsum(chance * math.log(chance) for chance in chances.values() if chance)
            differences.append(nll - expected)
    noise = statistics.stdev(differences) / math.sqrt(len(differences))
    assert noise < 0.008
    assert abs(statistics.fmean(differences)) < 3 * noise


def test_kinds_of_sentences_are_as_frequent_as_the_grammar_says() -> None:
    """After the first fact, one sentence in ten states a fact, and one in two recalls one."""
    kinds = Counter[str]()
    for seed in MANY:
        whole = sentences(in_words(document(seed, 600)))
        first = next(index for index, sentence in enumerate(whole) if sentence[0] == "remember")
        kinds.update(sentence[0] if len(sentence) == 3 else "walk" for sentence in whole[first + 1 :])
    count = sum(kinds.values())
    for kind, share in (("remember", 0.1), ("recall", 0.5)):
        # Sentences truncated by the end of a document are left out, which slightly favours short ones.
        assert kinds[kind] / count == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / count))


@given(seed=SEEDS, lengths=st.tuples(st.integers(2, 400), st.integers(2, 400)).map(sorted))
def test_a_longer_document_begins_with_the_shorter_one(seed: int, lengths: list[int]) -> None:
    """Documents of one seed agree in tokens, NLL and marks as far as both go."""
    short, long = (document(seed, length) for length in lengths)
    assert long.tokens[: lengths[0]] == short.tokens
    assert long.nll[: lengths[0]] == short.nll
    assert long.recalled[: lengths[0]] == short.recalled


@given(seed=SEEDS, length=st.integers(2, 1500))
def test_a_name_is_remembered_only_once(seed: int, length: int) -> None:
    """A name has one fact, which never changes."""
    words = in_words(document(seed, length))
    names = [words[index + 1] for index, word in enumerate(words[:-1]) if word == "remember"]
    assert len(set(names)) == len(names)
    assert set(names) <= set(NAMES)


@given(seed=SEEDS, length=st.integers(2, 400))
def test_recalled_marks_the_values_of_recalls_and_nothing_else(seed: int, length: int) -> None:
    """Marked tokens are exactly the second ones after ``recall``, the stated values, which are certain."""
    text = document(seed, length)
    words = in_words(text)
    assert text.recalled == tuple(place >= 2 and words[place - 2] == "recall" for place in range(length))
    stated = {words[place + 1]: words[place + 2] for place in range(length - 2) if words[place] == "remember"}
    for place in range(length):
        if text.recalled[place]:
            assert words[place] == stated[words[place - 1]]
            assert text.nll[place] == 0.0


def test_documents_are_the_same_on_every_machine() -> None:
    """Four documents of 300 tokens equal their frozen copies."""
    tokens = [document(seed, 300).tokens for seed in (0, 1, 2, 2**32)]
    digest = hashlib.sha256(json.dumps(tokens).encode()).hexdigest()
    assert digest == "f6675c380d1727ca8571539442db1b89d7bc30a5c4cc9f88285e8513d7da304f"


def test_entropy_is_the_mean_nll_after_the_first_token() -> None:
    """``<bos>`` is given and not predicted."""
    text = document(5, 100)
    assert text.entropy == pytest.approx(sum(text.nll) / 99, abs=1e-12)


def test_text_is_the_document_without_its_first_token() -> None:
    """The text is the document's words, separated by spaces."""
    text = document(5, 100)
    assert text.text.split(" ") == in_words(text)[1:]


def test_every_word_has_four_other_words_to_follow() -> None:
    """Every word has four different successors other than itself, and vocabulary entries are unique."""
    assert set(SUCCESSORS) == set(WORDS)
    for word, successors in SUCCESSORS.items():
        assert len(set(successors)) == 4
        assert word not in successors
        assert set(successors) <= set(WORDS)
    assert len(set(TOKENS)) == len(TOKENS)


@pytest.mark.parametrize("length", [1, 0, -5])
def test_a_document_of_fewer_than_two_tokens_is_refused(length: int) -> None:
    """A document needs two tokens, since the first is not predicted."""
    with pytest.raises(ValueError, match=f"length must be at least 2 tokens, got {length}"):
        document(0, length)
