"""``python -m tools.real.recorded``: the recorded perplexities and recalls of Gemma 3 270M, in docs/real-model.md."""

import math
import re
from collections.abc import Iterator
from pathlib import Path

from pressgauge.presses import PRESSES
from regression.baseline import Rows, read
from regression.cases import SCHEDULES
from regression.gemma import RATIOS, TASK_NAMES
from regression.provenance import BASELINES

PAGE = Path(__file__).parents[2] / "docs" / "real-model.md"


def perplexities(rows: Rows) -> Iterator[str]:
    """Perplexity by press, schedule and ratio."""

    def ppl(name: str) -> str:
        return f"{math.exp(float(rows[name]['nll'])):,.2f}"

    cases = [(schedule, ratio) for schedule in SCHEDULES for ratio in RATIOS]
    yield "| press | " + " | ".join(f"{schedule} {ratio:g}" for schedule, ratio in cases) + " |"
    yield "| --- |" + " ---: |" * len(cases)
    for press in PRESSES:
        yield f"| {press} | " + " | ".join(ppl(f"{press} {schedule} r={ratio}") for schedule, ratio in cases) + " |"
    yield f"| uncompressed | {ppl('uncompressed')} |" + " |" * (len(cases) - 1)


def recalls(rows: Rows) -> Iterator[str]:
    """Recall of each sample, by press and task."""
    yield "| press | " + " | ".join(TASK_NAMES) + " |"
    yield "| --- |" + " ---: |" * len(TASK_NAMES)
    for press in ("uncompressed", *PRESSES):
        yield f"| {press} | " + " | ".join(_mean(str(rows[f"{task} {press}"]["recalls"])) for task in TASK_NAMES) + " |"


def _mean(recalls: str) -> str:
    numbers = [float(one) for one in recalls.split()]
    return f"{sum(numbers) / len(numbers):.0%}".replace("%", " %")


def page() -> str:
    """The page with the tables of the baselines between their marks."""
    text = PAGE.read_text(encoding="utf-8")
    for name, made in {"perplexity-gemma": perplexities, "tasks-gemma": recalls}.items():
        table = "\n".join(made(read(BASELINES / "cpu" / f"{name}.yml").rows))
        mark = re.compile(rf"(?<=<!-- {name} -->\n\n).*?(?=\n\n<!-- /{name} -->)", re.DOTALL)
        text = mark.sub(table.replace("\\", r"\\"), text)
    return text


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
