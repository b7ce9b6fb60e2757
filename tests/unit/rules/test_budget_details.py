"""The prompt of a text, at the bounds."""

import pytest

from pressgauge.rules import Budget, check_prompt


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
