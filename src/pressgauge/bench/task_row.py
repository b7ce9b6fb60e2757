"""One row of results of a task: the recall of a model's answers under a press."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Annotated, Any

from pressgauge.bench.answering import Answers
from pressgauge.bench.quantities import Column, Quantity, declared
from pressgauge.bench.row import UNTOLD, Settings
from pressgauge.bench.score_intervals import score_interval
from pressgauge.formats import DASH, percent, points, size
from pressgauge.presses.base import Press

LEAST_CEILING = 0.8
"""Recall of the uncompressed model below which a task says nothing about a press."""
LESS, MORE, SAME = "recalls less", "recalls more", "no difference can be told"
"""Verdicts on the change in recall, by its interval."""


@dataclass(frozen=True)
class TaskSource:
    """The model that was measured, and where.

    Attributes:
        model: the name that a user gave.
        dtype, device: dtype and device of the model.
        weights_sha256: digest of the model's configuration and weights.
        parameters: parameters of the model.
    """

    model: str
    dtype: str
    device: str
    weights_sha256: str
    parameters: int


@dataclass(frozen=True)
class TaskInput:
    """What a model was given.

    Attributes:
        task: name of the task.
        samples, tokens: samples of the task, and the most tokens of a prompt and its answer.
        prompt_tokens: tokens of each prompt.
        room: tokens that may be generated for an answer.
        prompts_sha256: digest of the prompts' token ids and of what they hide.
    """

    task: str
    samples: int
    tokens: int
    prompt_tokens: tuple[int, ...]
    room: int
    prompts_sha256: str


@dataclass(frozen=True)
class TaskRow:
    """One measurement of a task.

    The names of its fields are those of the JSON. A measured field is annotated with its ``Quantity``.

    Attributes:
        ceiling: recall of the uncompressed model.
    """

    press: str
    schedule: str
    keep_ratio: float
    prune_after: int
    skip_layers: tuple[int, ...]
    model: str
    task: str
    dtype: str
    device: str
    recall: Annotated[
        float,
        Quantity(
            "recall",
            "share of the hidden strings that are in the answer, the mean over samples",
            "share",
            "more",
            page=Column("recall", lambda row: percent(row.recall)),
            terminal=Column("recall", lambda row: percent(row.recall)),
        ),
    ]
    recall_change: Annotated[
        float,
        Quantity(
            "change in recall",
            "recall minus that of the uncompressed model",
            "share",
            "more",
            page=Column("change in points", lambda row: row.change),
            terminal=Column("change, points", lambda row: row.change),
            interval="recall_interval",
        ),
    ]
    recall_interval: Annotated[
        tuple[float, float],
        Quantity(
            "interval of the change in recall", "paired 95 % confidence interval of the change, over samples", "share"
        ),
    ]
    recalls: Annotated[tuple[float, ...], Quantity("recalls", "recall of each sample", "share")]
    answer_tokens: Annotated[int, Quantity("answer tokens", "generated tokens of all answers", "tokens")]
    affected_tokens: Annotated[
        int,
        Quantity(
            "affected answer tokens",
            "tokens of answers whose query came after an eviction",
            "tokens",
            page=Column("affected / generated", lambda row: f"{row.affected_tokens:,} / {row.answer_tokens:,}"),
        ),
    ]
    evictions: Annotated[
        int,
        Quantity(
            "evictions",
            "entries evicted over all layers, KV heads and samples",
            "entries",
            page=Column("evictions", lambda row: f"{row.evictions:,}"),
        ),
    ]
    kv_bytes: Annotated[
        int,
        Quantity(
            "keys and values",
            "memory of the entries held at the end of all answers",
            "bytes",
            "less",
            page=Column("keys and values", lambda row: size(row.kv_bytes)),
        ),
    ]
    vacuous: Annotated[bool, Quantity("vacuous", "whether no answer was affected, although a press was given")]
    ceiling: float
    samples: int
    tokens: int
    prompt_tokens: tuple[int, ...]
    room: int
    prompts_sha256: str
    weights_sha256: str
    parameters: int

    @property
    def gated(self) -> bool:
        """Whether the uncompressed model recalls too little for a verdict."""
        # Shares such as fifths are rounded.
        return round(self.ceiling, 9) < LEAST_CEILING

    @property
    def judged(self) -> bool:
        """Whether the verdict is one on the change."""
        return self.keep_ratio < 1 and not self.gated and not self.vacuous

    @property
    def verdict(self) -> str:
        """``cannot be told`` with the reason if the uncompressed model recalls less than 80 %; ``uncompressed``;
        ``vacuous``; otherwise by the interval of the change ``recalls less``, ``recalls more``, or ``no difference can
        be told``."""
        if self.gated:
            return f"{UNTOLD}: the uncompressed model recalls {math.floor(100 * self.ceiling)} %"
        if self.keep_ratio == 1:
            return "uncompressed"
        if self.vacuous:
            return "vacuous"
        low, high = self.recall_interval
        return LESS if high < 0 else MORE if low > 0 else SAME

    @property
    def change(self) -> str:
        """The change in percentage points with its interval; a dash if it says nothing."""
        return points(self.recall_change, self.recall_interval) if self.judged else DASH

    def as_dict(self) -> dict[str, object]:
        """The fields and the verdict, for JSON."""
        return asdict(self) | {"verdict": self.verdict}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "TaskRow":
        """The row from the JSON of its ``as_dict``."""
        given = {field.name: data[field.name] for field in fields(cls)}
        values: dict[str, Any] = {name: tuple(at) if isinstance(at, list) else at for name, at in given.items()}
        return cls(**values)


TASK_QUANTITIES = declared(TaskRow)
"""Measured quantities of tasks, by the fields of a row."""


def make_task_row(
    name: str,
    press: Press | Settings,
    source: TaskSource,
    given: TaskInput,
    result: Answers,
    uncompressed: TaskRow | None = None,
) -> TaskRow:
    """The row of one result.

    Args:
        name: name of the press.
        press: the press, or its settings.
        source: model, dtype and device.
        given: the task and its prompts.
        result: answers under the press.
        uncompressed: row that it is compared with; by default itself.
    """
    settings = press if isinstance(press, Settings) else Settings.of(press)
    assert settings.schedule is not None
    assert settings.keep_ratio is not None
    assert settings.prune_after is not None
    assert settings.skipped is not None
    before = result.recalls if uncompressed is None else uncompressed.recalls
    ceiling = math.fsum(before) / len(before)
    return TaskRow(
        press=name,
        schedule=settings.schedule,
        keep_ratio=settings.keep_ratio,
        prune_after=settings.prune_after,
        skip_layers=settings.skipped,
        **asdict(source),
        **asdict(given),
        recall=result.recall,
        recall_change=result.recall - ceiling,
        recall_interval=score_interval(before, result.recalls),
        recalls=result.recalls,
        answer_tokens=result.answer_tokens,
        affected_tokens=result.affected_tokens,
        evictions=result.evictions,
        kv_bytes=result.kv_bytes,
        vacuous=result.vacuous,
        ceiling=ceiling,
    )
