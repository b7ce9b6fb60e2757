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

    def fits(sample: Sample) -> bool:
        return len(start) + len(_ids(tokenizer, sample.prompt)) + room <= tokens

    prompts = []
    for seed in seeds:
        size = _largest(lambda size, seed=seed: fits(task.draw(seed, size, seed)), task.least)  # type: ignore[misc]
        sample = task.draw(seed, size, seed)
        ids = (*start, *_ids(tokenizer, sample.prompt))
        check_sample(task, sample, str(tokenizer.decode(list(ids[len(start) :]))))
        prompts.append(Prompt(sample, ids))
    return Prompts(tuple(prompts), room)


def _largest(fits: Callable[[int], bool], least: int) -> int:
    """A size that fits while the next one does not, by doubling and bisection; ``least`` fits."""
    low, high = least, 2 * least
    while fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, verbose=False).input_ids)


def _start(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Special tokens that a tokenizer begins a text with, such as BOS; those at its end would end the prompt."""
    plain, whole = _ids(tokenizer, "a"), list(tokenizer("a", verbose=False).input_ids)
    places = range(len(whole) - len(plain) + 1)
    return tuple(whole[: next((place for place in places if whole[place : place + len(plain)] == plain), 0)])
