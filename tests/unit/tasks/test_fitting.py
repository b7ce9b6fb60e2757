"""Prompts of a given length in tokens."""

from itertools import accumulate, cycle, islice
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pressgauge.tasks import TASKS, fitting
from pressgauge.tasks.fitting import Prompts, fitted
from support.tokenizers_of_kinds import tokenizer_of


def check(found: Prompts, tokens: int) -> None:
    """Prompt and answer fit in ``tokens``, and the haystack could not be two sentences longer."""
    for prompt in found.prompts:
        assert tokens - 60 < len(prompt.ids) + found.answer_tokens <= tokens


@pytest.mark.parametrize("tokens", [512, 1000, 2048, 10_000])
@pytest.mark.parametrize("name", ["niah", "niah-multikey", "passkey"])
def test_haystacks_fill_the_tokens(name: str, tokens: int) -> None:
    check(fitted(TASKS[name], tokenizer_of("subwords"), samples=2, tokens=tokens), tokens)


def test_lengths_in_words_are_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts whose length was counted in words have too many tokens."""
    task, largest = TASKS["niah"], fitting._largest

    def in_words(size: int) -> int:
        return len(task.draw(0, size, 0).prompt.split())

    monkeypatch.setattr(fitting, "_largest", lambda count, least, most: largest(in_words, least, most))
    with pytest.raises(AssertionError):
        check(fitted(task, tokenizer_of("subwords"), samples=1, tokens=512), 512)


@given(st.integers(1, 40), st.integers(0, 3000), st.lists(st.integers(0, 9), min_size=1, max_size=8))
def test_the_largest_size_fits_and_the_next_one_does_not(least: int, more: int, growth: list[int]) -> None:
    """For tokens that grow unevenly, or not at all for a while, with few lengths counted."""
    growth = [*growth, 3]
    totals = [*accumulate(islice(cycle(growth), 6000), initial=5)]
    most = totals[least] + more
    asked: list[int] = []

    def count(size: int) -> int:
        asked.append(size)
        return totals[size] if size < len(totals) else most + size

    found = fitting._largest(count, least, most)
    assert found >= least
    assert totals[found] <= most < totals[found + 1]
    assert len(asked) <= 40


def test_few_lengths_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A long haystack is tokenised a dozen times, not dozens of times."""
    counted, lengths = fitting._ids, []

    def ids(tokenizer: Any, text: str) -> list[int]:
        found = counted(tokenizer, text)
        lengths.append(len(found))
        return found

    monkeypatch.setattr(fitting, "_ids", ids)
    fitted(TASKS["niah"], tokenizer_of("subwords"), samples=1, tokens=50_000)
    assert sum(length > 10_000 for length in lengths) <= 14


def test_special_tokens_are_those_at_the_beginning() -> None:
    """BOS is part of the prompt and counted, and EOS, which a tokenizer may append to a text, is not."""
    tokenizer = tokenizer_of("pieces")
    assert list(tokenizer("a").input_ids)[-1] == tokenizer.eos_token_id
    (prompt,) = fitted(TASKS["passkey"], tokenizer, samples=1, tokens=600).prompts
    assert prompt.ids[0] == tokenizer.bos_token_id
    assert tokenizer.eos_token_id not in prompt.ids


def test_too_few_tokens_are_refused_with_the_number_that_is_needed() -> None:
    tokenizer = tokenizer_of("bytes")
    with pytest.raises(ValueError, match=r"'niah' needs at least --tokens (\d+) with") as caught:
        fitted(TASKS["niah"], tokenizer, samples=3, tokens=100)
    least = int(str(caught.value).split("--tokens ")[1].split()[0])
    assert max(len(prompt.ids) for prompt in fitted(TASKS["niah"], tokenizer, samples=3, tokens=least).prompts) <= least
    with pytest.raises(ValueError, match=f"at least --tokens {least}"):
        fitted(TASKS["niah"], tokenizer, samples=3, tokens=least - 1)


def test_words_that_a_tokenizer_does_not_know_are_refused() -> None:
    with pytest.raises(ValueError, match="which the model's tokenizer cannot encode"):
        fitted(TASKS["niah"], tokenizer_of("reference"), samples=1, tokens=500)
