"""Tasks that cannot measure recall are found out."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from pressgauge.tasks import TASKS
from pressgauge.tasks.checks import check_dependence, check_sample
from pressgauge.tasks.needles import NIAH
from pressgauge.tasks.sample import Sample, Task


@pytest.mark.parametrize("task", TASKS.values(), ids=list(TASKS))
def test_every_task_passes(task: Task) -> None:
    check_dependence(task, 0, task.least)
    sample = task.draw(0, task.least, 0)
    check_sample(task, sample, sample.prompt)


def _constant(seed: int, size: int, hiding: int) -> Sample:
    """The same is hidden in every prompt."""
    return NIAH.draw(seed, size, 7)


def _independent(seed: int, size: int, hiding: int) -> Sample:
    """The prompt differs, and the answer is the same word of it each time."""
    sample = NIAH.draw(seed, size, hiding)
    return replace(sample, context=f"The word is river. {sample.context}", hidden=(("river",),))


def _by_question(seed: int, size: int, hiding: int) -> Sample:
    """The question has the answer."""
    sample = NIAH.draw(seed, size, hiding)
    return replace(sample, question=f"{sample.question} {sample.hidden[0][0]},")


@pytest.mark.parametrize(
    ("draw", "finding"),
    [(_constant, "hides nothing that differs"), (_independent, "same answer"), (_by_question, "must ask the same")],
)
def test_an_answer_that_does_not_depend_on_the_needle_is_found(
    draw: Callable[[int, int, int], Sample], finding: str
) -> None:
    with pytest.raises(ValueError, match=finding):
        check_dependence(replace(NIAH, draw=draw), 0, 20)


GOOD = NIAH.draw(0, 20, 0)
NUMBER = GOOD.hidden[0][0]


@pytest.mark.parametrize(
    ("sample", "finding"),
    [
        (replace(GOOD, context=GOOD.context.replace(NUMBER, "nothing")), "it is not in there"),
        (replace(GOOD, context=GOOD.context.replace(NUMBER, f"{NUMBER}0")), "it is not in there"),
        (replace(GOOD, question=f"{GOOD.question} {NUMBER}"), "it is in there"),
        (replace(GOOD, hidden=()), "hides nothing"),
    ],
    ids=["not in the prompt", "part of another number", "in the question", "nothing hidden"],
)
def test_a_sample_that_does_not_hide_its_answer_is_found(sample: Sample, finding: str) -> None:
    with pytest.raises(ValueError, match=finding):
        check_sample(NIAH, sample, sample.prompt)


@pytest.mark.parametrize("read", [GOOD.prompt[: GOOD.prompt.index(NUMBER) + 3], GOOD.prompt.replace("3", "?")])
def test_a_needle_that_the_model_cannot_read_is_found(read: str) -> None:
    """A prompt that was truncated within its needle, or that its tokenizer cannot encode, is refused."""
    assert "3" in NUMBER
    with pytest.raises(ValueError, match="the model's tokenizer cannot encode: give another --task or --model"):
        check_sample(NIAH, GOOD, read)
