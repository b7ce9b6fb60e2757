"""The prompt of a text, at the bounds."""

import pytest

from pressgauge.rules import UNPRUNABLE, Budget, Ledger, check_prompt


@pytest.mark.parametrize(("longest", "refused"), [(7, True), (8, True), (9, False), (None, False)])
def test_a_prompt_that_can_never_be_pruned_is_refused(longest: int | None, refused: bool) -> None:
    """One of exactly as many tokens as are never pruned is one of them; rows are counted without padding."""
    budget = Budget(0.5, prune_after=8, schedule="prefill")
    if not refused:
        check_prompt(budget, 9, 20, longest)
        return
    sentence = (
        f"^schedule 'prefill' acts once, after the prompt, and never with a prompt of {longest} tokens and "
        "prune_after=8: give a longer prompt or a smaller prune_after$"
    )
    with pytest.raises(ValueError, match=sentence):
        check_prompt(budget, 9, 20, longest)
    check_prompt(Budget(0.5, prune_after=8), 9, 20, longest)
    check_prompt(Budget(1, prune_after=8, schedule="prefill"), 9, 20, longest)
    check_prompt(None, 9, 20, longest)


def test_unprunable_layers_are_those_of_a_model() -> None:
    """Without a model there are no indices, which the error says with the ways to give them."""
    assert Budget(0.5, skip_layers=(3, 1, 3)).skipped == (1, 3)
    sentence = (
        r"^skip_layers='unprunable' means layers of a model, and there is none here: "
        r"give their indices, or press\.resolved\(model\)$"
    )
    with pytest.raises(ValueError, match=sentence):
        _ = Budget(0.5, skip_layers=UNPRUNABLE).skipped


@pytest.mark.parametrize("prompt", [-1, 0, 20, 21])
def test_a_prompt_leaves_a_token_to_score(prompt: int) -> None:
    """Its length is refused with that of the text, and the bounds are accepted."""
    sentence = f"^prompt must be at least 1 and leave one of the 20 tokens to score, got {prompt}$"
    with pytest.raises(ValueError, match=sentence):
        check_prompt(None, prompt, 20)
    check_prompt(None, 1, 20)
    check_prompt(None, 19, 20)


def test_a_single_entry_can_be_retained() -> None:
    """A share of the entries in the cache is rounded up, to one entry or more."""
    assert Budget(0.01, 0, schedule="step").target(10, 10) == 1
    assert Budget(0.01, 0, schedule="prefill").target(10, 10) == 1
    assert Budget(0.01, 0, schedule="step").target(200, 101) == 2


def test_a_ledger_is_finished_where_nothing_is_evicted_any_more() -> None:
    """From the start at a ratio of 1, and after the prompt with schedule ``prefill``."""
    for budget, expected in (
        (Budget(1), [True, True, True]),
        (Budget(0.5, 2), [False, False, False]),
        (Budget(0.5, 2, schedule="prefill"), [False, False, True]),
    ):
        ledger = Ledger(budget)
        found = [ledger.finished]
        for length in (8, 1):
            ledger.feed(length, [0])
            found.append(ledger.finished)
        assert found == expected
