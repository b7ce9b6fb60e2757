"""The tables of measured quantities in ``docs/``: ``python -m tools.quantity_table`` writes them."""

import re
from collections.abc import Mapping
from pathlib import Path

from pressgauge.bench.quantities import Quantity
from pressgauge.bench.row import QUANTITIES
from pressgauge.bench.task_row import TASK_QUANTITIES

DOCS = Path(__file__).parents[1] / "docs"
PAGES: dict[Path, Mapping[str, Quantity]] = {
    DOCS / "measuring.md": QUANTITIES,
    DOCS / "tasks.md": TASK_QUANTITIES,
}
"""By page, the quantities that it has a table of."""
TABLE = re.compile(r"(?<=<!-- quantities -->\n\n).*?(?=\n<!-- /quantities -->)", re.DOTALL)


def table(quantities: Mapping[str, Quantity]) -> str:
    """Declarations in Markdown."""
    lines = ["| field | quantity | unit | better | meaning |", "| --- | --- | --- | --- | --- |"]
    for name, one in quantities.items():
        lines.append(f"| `{name}` | {one.name} | {one.unit} | {one.better} | {one.meaning} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    for path, quantities in PAGES.items():
        page = path.read_text(encoding="utf-8")
        path.write_text(TABLE.sub(lambda _, of=quantities: table(of), page), encoding="utf-8")  # type: ignore[misc]
