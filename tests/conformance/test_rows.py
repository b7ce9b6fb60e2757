"""Laws about batches: rows are independent, and padding has no effect."""

from typing import Any

import torch

from pressgauge.conformance import architectures
from pressgauge.conformance.checks import check_same_logits, comparable
from pressgauge.conformance.oracle import NEVER
from pressgauge.conformance.outcomes import Departure, not_applicable
from pressgauge.conformance.session import Trace, provided_for, run
from pressgauge.conformance.subjects import Subject
from pressgauge.conformance.traces import audited

LENGTH = 20
ALTERED_LENGTH = 160
"""Length of a text for altered entries: a residual of 128 tokens leaves some that are altered."""

LENGTHS = [5, 9, 15]


def check_alone(together: Trace, alone: Trace, row: int, padding: int) -> None:
    """Check that a row of a batch, after its padding, has the logits of a run alone.

    Raises:
        Departure: if they differ.
    """
    own = together.logits[row : row + 1, padding:]
    finding = f"of row {row} with {padding} columns of padding are others in a batch than alone"
    check_same_logits(alone, own, alone.logits, finding)


def test_rows_are_independent(subject: Subject, model: architectures.Model) -> None:
    """Rule 8: the result of a sequence does not depend on the rest of its batch (S9 of the bug catalogue)."""
    length = ALTERED_LENGTH if subject.declares.entries == "altered" else LENGTH
    ids = architectures.text(model, 3, length)
    lengths = [length - 6] + [1] * 6
    options: dict[str, Any] = {"keep_ratio": 0.5, "prune_after": 4}
    comparable(subject.model_dtype)
    together = run(subject, model, ids, lengths, **options)
    tables = audited(together).evicted_at if subject.declares.matchable else []
    for row in range(3):
        alone = run(subject, model, ids[row : row + 1], lengths, **options)
        if tables:
            for layer, (mine, own) in enumerate(zip(tables, audited(alone).evicted_at, strict=True)):
                if not torch.equal(mine[row], own[0]):
                    head, token = torch.nonzero(mine[row] != own[0])[0].tolist()
                    raise Departure(
                        f"layer {layer}, KV head {head} evicts token {token} of row {row} "
                        f"{_when(int(mine[row, head, token]))} in a batch and {_when(int(own[0, head, token]))} alone"
                    )
        check_alone(together, alone, row, 0)


def _when(evicted_at: int) -> str:
    return "never" if evicted_at == NEVER else f"after {evicted_at} tokens"


def test_permuting_rows_permutes_the_result(subject: Subject, one_model: architectures.Model) -> None:
    """Rule 8: results do not depend on the order of rows."""
    ids = architectures.text(one_model, 3, LENGTH)
    order = [2, 0, 1]
    one, other = (
        run(subject, one_model, i, [14] + [1] * (LENGTH - 14), keep_ratio=0.5, prune_after=4) for i in (ids, ids[order])
    )
    check_same_logits(one, one.logits[order], other.logits, "are others with the rows of a batch in another order")


def test_padding_has_no_effect(subject: Subject, model: architectures.Model) -> None:
    """Rule 11: rows padded on the left have the logits of runs without padding (C9 of the bug catalogue)."""
    provided_for(subject, "padding")
    if not subject.declares.padding:
        not_applicable("the subject declares that it does not support padded rows")
    columns, new = max(LENGTHS), 6
    ids = architectures.text(model, len(LENGTHS), columns + new)
    mask = torch.tensor([[int(c >= columns - length) for c in range(columns + new)] for length in LENGTHS])
    options: dict[str, Any] = {"keep_ratio": 0.5, "prune_after": 4}
    together = run(subject, model, ids * mask, [columns] + [1] * new, mask, **options)
    for row, length in enumerate(LENGTHS):
        padding = columns - length
        alone = run(subject, model, ids[row : row + 1, padding:], [length] + [1] * new, **options)
        check_alone(together, alone, row, padding)
