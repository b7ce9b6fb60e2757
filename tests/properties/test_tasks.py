"""Properties of long-context tasks: any length, seed and tokenizer."""

from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pressgauge.tasks import TASKS
from pressgauge.tasks.checks import check_dependence, check_sample
from pressgauge.tasks.fitting import fitted
from pressgauge.tasks.sample import Task
from pressgauge.tasks.scoring import recall
from support.task_readers import READERS
from support.tokenizers_of_kinds import KINDS, tokenizer_of

NAMES = sorted(TASKS)
SEEDS = st.integers(0, 10_000)
TASK = st.sampled_from(sorted(TASKS.values(), key=lambda task: task.name))


@given(TASK, SEEDS, SEEDS, st.integers(0, 400))
def test_a_reader_of_the_prompt_scores_one_and_a_blind_one_nothing(
    task: Task, seed: int, hiding: int, more: int
) -> None:
    """The prompt has all that is needed for the answer, and the question alone has none of it."""
    sample = task.draw(seed, task.least + more, hiding)
    assert recall(READERS[task.name](sample.prompt), sample.hidden) == 1
    assert recall(sample.answer, sample.hidden) == 1
    assert recall(sample.question, sample.hidden) == 0
    check_sample(task, sample, sample.prompt)


@given(TASK, SEEDS, st.integers(0, 400))
def test_another_needle_has_another_answer(task: Task, seed: int, more: int) -> None:
    """The answer depends on what is hidden and not on the question, in every task."""
    check_dependence(task, seed, task.least + more)


@given(TASK, SEEDS, st.integers(0, 200))
def test_a_sample_is_determined_by_its_seeds(task: Task, seed: int, more: int) -> None:
    size = task.least + more
    assert task.draw(seed, size, seed) == task.draw(seed, size, seed)
    assert task.draw(seed, size, seed).context != task.draw(seed + 1, size, seed + 1).context


@given(TASK, SEEDS, st.integers(0, 200))
def test_a_larger_size_is_a_longer_haystack(task: Task, seed: int, more: int) -> None:
    size = task.least + more
    assert len(task.draw(seed, size + 30, seed).context) > len(task.draw(seed, size, seed).context)


@given(st.sampled_from(KINDS), st.sampled_from(NAMES), st.integers(1, 2), st.integers(400, 3000))
def test_a_prompt_with_its_answer_has_at_most_the_tokens_asked_for(
    kind: str, name: str, samples: int, tokens: int
) -> None:
    """Prompts fit in tokens of any tokenizer, are nearly as long as they may be, and are still solved when decoded; too
    few tokens are refused, and exactly these."""
    tokenizer = tokenizer_of(kind)
    if tokens < (least := _least(name, kind, samples)):
        with pytest.raises(ValueError, match=f"needs at least --tokens {least} "):
            fitted(TASKS[name], tokenizer, samples=samples, tokens=tokens)
        tokens = least
    found = fitted(TASKS[name], tokenizer, samples=samples, tokens=tokens)
    assert len(found.prompts) == samples
    for prompt in found.prompts:
        assert 0.85 * tokens - 100 < len(prompt.ids) + found.answer_tokens <= tokens
        # Counted by the tokenizer itself: special tokens at the beginning, none at the end.
        whole = list(tokenizer(prompt.sample.prompt).input_ids)
        end = [tokenizer.eos_token_id] if kind == "pieces" else []
        assert [*prompt.ids, *end] == whole
        read = str(tokenizer.decode(list(prompt.ids), skip_special_tokens=True))
        assert recall(READERS[name](read), prompt.sample.hidden) == 1
        assert found.answer_tokens >= len(tokenizer(prompt.sample.answer, add_special_tokens=False).input_ids)


@cache
def _least(name: str, kind: str, samples: int) -> int:
    """Fewest tokens of a task, from its refusal."""
    with pytest.raises(ValueError, match="needs at least --tokens") as caught:
        fitted(TASKS[name], tokenizer_of(kind), samples=samples, tokens=1)
    return int(str(caught.value).split("--tokens ")[1].split()[0])
