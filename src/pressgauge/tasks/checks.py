"""Whether a task can be measured at all: the answer is in the haystack, and nowhere else."""

from pressgauge.tasks.sample import Sample, Task
from pressgauge.tasks.scoring import contains, recall


def check_sample(task: Task, sample: Sample, read: str) -> None:
    """Check that a sample hides its answer in its context.

    Args:
        task: the task.
        sample: a sample of it.
        read: the prompt as the model reads it: its tokens, decoded.

    Raises:
        ValueError: if a hidden string is not in the prompt, or is in its question.
    """
    if not sample.hidden:
        raise ValueError(f"task {task.name!r} must hide something, and a sample of it hides nothing")
    for spellings in sample.hidden:
        if not any(contains(sample.context, one) for one in spellings):
            raise ValueError(f"task {task.name!r} must have {spellings[0]!r} in its haystack, and it is not in there")
        if any(contains(sample.question, one) for one in spellings):
            raise ValueError(f"task {task.name!r} must not have {spellings[0]!r} in its question, and it is in there")
    if recall(read, sample.hidden) < 1:
        missing = next(one[0] for one in sample.hidden if recall(read, (one,)) < 1)
        raise ValueError(
            f"task {task.name!r} hides {missing!r}, which the model's tokenizer cannot encode: give another --task or "
            "--model"
        )


def check_dependence(task: Task, seed: int, size: int) -> None:
    """Check that the answer depends on what is hidden, and the question does not.

    Two prompts have the same haystack and hide different strings. Then their questions are equal, so only the context
    has the answer.

    Raises:
        ValueError: if their questions differ, or their contexts or answers do not.
    """
    one, other = task.draw(seed, size, 0), task.draw(seed, size, 1)
    if one.question != other.question:
        raise ValueError(
            f"task {task.name!r} must ask the same whatever is hidden, and asks {other.question!r} as well"
        )
    if one.context == other.context:
        raise ValueError(f"task {task.name!r} must hide something in its haystack, and hides nothing that differs")
    if recall(one.answer, other.hidden) == 1:
        raise ValueError(f"task {task.name!r} has the same answer whatever is hidden, {one.answer.strip()!r}")
