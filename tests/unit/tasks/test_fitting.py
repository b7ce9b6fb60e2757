"""Prompts of a given length in tokens."""

import pytest

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

    def in_words(size: int) -> bool:
        return len(task.draw(0, size, 0).prompt.split()) <= 512

    monkeypatch.setattr(fitting, "_largest", lambda fits, least: largest(in_words, least))
    with pytest.raises(AssertionError):
        check(fitted(task, tokenizer_of("subwords"), samples=1, tokens=512), 512)


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
