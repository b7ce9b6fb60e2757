"""The table of measured quantities in ``docs/measuring.md``: ``python -m tools.quantity_table`` writes it."""

import re
from pathlib import Path

from pressgauge.bench.row import QUANTITIES

PAGE = Path(__file__).parents[1] / "docs" / "measuring.md"
TABLE = re.compile(r"(?<=<!-- quantities -->\n\n).*?(?=\n<!-- /quantities -->)", re.DOTALL)


def table() -> str:
    """The declarations of ``Row`` in Markdown."""
    lines = ["| field | quantity | unit | better | meaning |", "| --- | --- | --- | --- | --- |"]
    for name, one in QUANTITIES.items():
        lines.append(f"| `{name}` | {one.name} | {one.unit} | {one.better} | {one.meaning} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(TABLE.sub(lambda _: table(), page), encoding="utf-8")
