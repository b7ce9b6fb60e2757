"""The compressors under test, as data: by default all presses of the package under all schedules."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from conformance import oracle
from pressgauge import KeyDiffPress, KnormPress, Press, RandomPress, StreamingLLMPress

ScoresOf = Callable[[list[list[float]], int, int], oracle.Scores]
"""(the keys of one head, layer, head) to the scores that its press must give."""


@dataclass(frozen=True)
class Subject:
    """A compressor, and what the oracle needs to know about it."""

    name: str
    factory: Callable[..., Press]
    schedule: str
    scores: ScoresOf
    exact: bool = False
    """Scores are integers."""
    sinks: int = 0
    """Sinks by default."""

    def __call__(self, keep_ratio: float, **options: Any) -> Press:
        """The press with these options, under this subject's schedule."""
        return self.factory(keep_ratio, **{"schedule": self.schedule, **options})

    def history(
        self,
        options: dict[str, Any],
        keys: Tensor,
        passes: list[int],
        layer: int,
        prompt_length: int | None = None,
    ) -> tuple[list[list[list[int]]], list[int]]:
        """What the oracle says of keys ``[B, K, T, D]`` under these options, whatever the press makes of them:
        ``evicted_at`` as nested lists, and the number held after each pass."""
        rules = {"prune_after": 512, "sinks": self.sinks, "schedule": self.schedule, **options}
        if layer in rules.pop("skip_layers", ()):
            rules["keep_ratio"] = 1
        counts: list[int] = []
        tables = []
        for row in keys.tolist():
            heads = []
            for index, head in enumerate(row):
                scores = self.scores(head, layer, index)
                table, counts = oracle.history(scores, passes, prompt_length=prompt_length, exact=self.exact, **rules)
                heads.append(table)
            tables.append(heads)
        return tables, counts


def _subjects() -> list[Subject]:
    subjects = []
    for schedule in ("budget", "step", "prefill"):
        subjects += [
            Subject(f"knorm-{schedule}", KnormPress, schedule, lambda keys, layer, head: oracle.norm_scores(keys)),
            Subject(
                f"streaming-llm-{schedule}",
                StreamingLLMPress,
                schedule,
                lambda keys, layer, head: oracle.position_scores(keys),
                exact=True,
                sinks=4,
            ),
            Subject(
                f"random-{schedule}",
                RandomPress,
                schedule,
                lambda keys, layer, head: oracle.random_scores(0, layer, head),
                exact=True,
            ),
            Subject(
                f"keydiff-{schedule}",
                KeyDiffPress,
                schedule,
                lambda keys, layer, head: oracle.keydiff_scores(keys),
            ),
        ]
    return subjects


SUBJECTS = _subjects()
