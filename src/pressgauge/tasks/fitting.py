"""Prompts of a given length, in a model's own tokens."""

from collections.abc import Callable
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from pressgauge.tasks.checks import check_sample
from pressgauge.tasks.sample import Sample, Task


@dataclass(frozen=True)
class Prompt:
    """A sample in a model's tokens.

    Attributes:
        sample: the sample.
        ids: token ids of its prompt, with the special tokens that the tokenizer begins a text with.
    """

    sample: Sample
    ids: tuple[int, ...]


@dataclass(frozen=True)
class Prompts:
    """Samples of a task in a model's tokens.

    Attributes:
        prompts: one per seed from 0 on.
        answer_tokens: tokens that may be generated for an answer.
    """

    prompts: tuple[Prompt, ...]
    answer_tokens: int


def fitted(task: Task, tokenizer: PreTrainedTokenizerBase, *, samples: int, tokens: int) -> Prompts:
    """Samples with the longest haystacks for which prompt and answer have at most ``tokens`` tokens.

    Args:
        task: the task.
        tokenizer: the model's tokenizer.
        samples: number of samples.
        tokens: tokens of a prompt, special ones included, and its answer.

    Raises:
        ValueError: if the task needs more tokens, or the tokenizer cannot encode what it hides.
    """
    start = _start(tokenizer)
    seeds = range(samples)
    smallest = [task.draw(seed, task.least, seed) for seed in seeds]
    room = max(task.room(len(_ids(tokenizer, sample.answer))) for sample in smallest)
    least = max(len(start) + len(_ids(tokenizer, sample.prompt)) for sample in smallest) + room
    if least > tokens:
        raise ValueError(
            f"task {task.name!r} needs at least --tokens {least} with this model's tokenizer, {room} of them for the "
            f"answer, got {tokens}"
        )

    def longest(seed: int) -> Sample:
        def count(size: int) -> int:
            return len(start) + len(_ids(tokenizer, task.draw(seed, size, seed).prompt))

        return task.draw(seed, _largest(count, task.least, tokens - room), seed)

    prompts = []
    for seed in seeds:
        sample = longest(seed)
        ids = (*start, *_ids(tokenizer, sample.prompt))
        check_sample(task, sample, str(tokenizer.decode(list(ids[len(start) :]))))
        prompts.append(Prompt(sample, ids))
    return Prompts(tuple(prompts), room)


def _largest(count: Callable[[int], int], least: int, most: int) -> int:
    """A size of at most ``most`` tokens while the next one has more; ``least`` has not.

    Tokens grow almost evenly with the size, so it is found by interpolation, and every second step is a bisection.
    """
    low, at_low, high = least, count(least), None
    size, slope, steps = 2 * least, 1.0, 0
    while high is None or high - low > 1:
        found = count(size)
        slope = max((found - at_low) / (size - low), slope / 2)
        if found <= most:
            low, at_low = size, found
        else:
            high = size
        steps += 1
        size = low + max(1, int((most - at_low) / slope))
        if high is not None:
            size = (low + high) // 2 if steps % 2 else min(size, high - 1)
    return low


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, verbose=False).input_ids)


def _start(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Special tokens that a tokenizer begins a text with, such as BOS; those at its end would end the prompt."""
    plain, whole = _ids(tokenizer, "a"), list(tokenizer("a", verbose=False).input_ids)
    places = range(len(whole) - len(plain) + 1)
    return tuple(whole[: next((place for place in places if whole[place : place + len(plain)] == plain), 0)])
