"""Laws for functions that generate tokens, and show nothing else: held to what shows from outside."""

from typing import Any

import torch

from pressgauge.conformance import architectures, devices
from pressgauge.conformance.generating import NEW, PROMPT, comparable, difference, plain_tokens, tokens_of
from pressgauge.conformance.outcomes import Departure, Refused
from pressgauge.conformance.subjects import Subject
from pressgauge.conventions.state import difference as changed
from pressgauge.conventions.state import fingerprint

OPTIONS: dict[str, Any] = {"keep_ratio": 0.5, "prune_after": 4}


def test_a_ratio_of_one_generates_the_tokens_of_the_plain_model(subject: Subject, model: architectures.Model) -> None:
    """Rule 7: with keep_ratio 1, the tokens are those that the model generates greedily without a compressor."""
    comparable(subject)
    for length in (1, PROMPT):
        ids = architectures.text(model, 1, length)
        found = tokens_of(subject, model, ids, keep_ratio=1.0, prune_after=0)
        if where := difference(found, plain_tokens(model, ids), length):
            raise Departure(f"keep_ratio is 1, but after a prompt of {length} tokens {where}")


def test_the_prompt_comes_first_and_the_number_of_tokens_is_as_asked(
    subject: Subject, one_model: architectures.Model
) -> None:
    """The result is the prompt, unchanged, and ``max_new_tokens`` further tokens, whatever their numbers."""
    for length, new in ((PROMPT, NEW), (PROMPT, 1), (1, NEW), (2, 2)):
        tokens_of(subject, one_model, architectures.text(one_model, 1, length), new, **OPTIONS)


def test_prompts_longer_than_the_budget_are_continued(subject: Subject, one_model: architectures.Model) -> None:
    """Prompts of many times the budget are continued, with tokens of the vocabulary."""
    for length in (PROMPT, 5 * PROMPT):
        for keep_ratio in (0.5, 0.1, 0.02):
            ids = architectures.text(one_model, 1, length)
            try:
                found = tokens_of(subject, one_model, ids, keep_ratio=keep_ratio, prune_after=4)
            except (Departure, Refused):
                raise
            except Exception as error:
                raise Departure(
                    f"a prompt of {length} tokens with keep_ratio {keep_ratio} and prune_after 4 is not continued: "
                    f"{type(error).__name__}: {error}"
                ) from error
            if not ((found >= 0) & (found < architectures.vocabulary(one_model))).all():
                raise Departure(f"a prompt of {length} tokens is continued by {found[0, length:].tolist()}")


def test_rows_are_continued_independently(subject: Subject, one_model: architectures.Model) -> None:
    """Rule 8: a row of a batch is continued as alone."""
    comparable(subject)
    ids = architectures.text(one_model, 3, PROMPT)
    together = tokens_of(subject, one_model, ids, **OPTIONS)
    alone = torch.cat([tokens_of(subject, one_model, row[None], **OPTIONS) for row in ids])
    if where := difference(together, alone, PROMPT):
        raise Departure(f"in a batch of 3, {where}, its token alone")


def test_later_calls_do_not_depend_on_earlier_ones(subject: Subject, one_model: architectures.Model) -> None:
    """Rule 10: one function continues a prompt in the same way after another prompt, and a new function does, too."""
    texts = [architectures.text(one_model, 1, length, seed=length) for length in (PROMPT, PROMPT + 9)]
    fresh = [tokens_of(subject, one_model, ids, **OPTIONS) for ids in texts]
    compressor = subject(**OPTIONS, model=one_model, prompt_length=PROMPT)
    for turn, index in enumerate((0, 1, 0)):
        again = tokens_of(subject, one_model, texts[index], compressor=compressor)
        if where := difference(again, fresh[index], texts[index].shape[1]):
            raise Departure(f"as prompt {turn + 1} of one function, {where}, its token with a new one")


def test_the_model_of_a_generating_function_is_left_unchanged(subject: Subject) -> None:
    """After a call, weights, hooks, attributes and tokens of the model are as before (C6 of the bug catalogue)."""
    model = architectures.build("llama").to(devices.chosen(), subject.dtype)
    ids = architectures.text(model, 1, PROMPT)
    before, expected = fingerprint(model), plain_tokens(model, ids)
    tokens_of(subject, model, ids, **OPTIONS)
    if what := changed(before, fingerprint(model)):
        raise Departure(f"the model has changed after a call: {what}")
    if where := difference(plain_tokens(model, ids), expected, PROMPT):
        raise Departure(f"the model without a compressor has changed after a call: {where}")
