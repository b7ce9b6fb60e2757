"""What pages show under their code: ``python -m tools.false_results`` runs them and mends what differs.

A Python block of the page may be followed by what it prints, between ``<!-- numbers: NAME -->`` and
``<!-- /numbers -->``. Times stand in ``<!-- recorded: NAME -->`` and ``<!-- /recorded -->``: they belong to the machine
and the moment, so only the words around them are held to. To record them anew, empty the block first. Between
``<!-- finding: KIND FUNCTION -->`` and ``<!-- /finding -->`` stands what the audit of measuring code says first of a
function of the page.
"""

import io
import re
from contextlib import redirect_stdout
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from textwrap import dedent, indent, wrap
from typing import Any

import torch

from support.laws import first_finding

DOCS = Path(__file__).parents[1] / "docs"
PAGE = DOCS / "false-results.md"
SHOWING = (PAGE, *sorted(DOCS.glob("measuring-audit*.md")))
"""Pages that show what their code prints or what is found in it."""
BLOCK = re.compile(
    r"^```python\n(?P<code>.*?)^```$"
    r"(?:\n\n<!-- (?P<kind>numbers|recorded|finding): (?P<name>[a-z_ -]+) -->\n(?P<shown>.*?)^<!-- /(?P=kind) -->$)?",
    flags=re.MULTILINE | re.DOTALL,
)
NUMBER = re.compile(r"(?<![\w.])[+-]?\d+(?:\.\d+)?(?:e[+-]?\d+)?")


@dataclass(frozen=True)
class Output:
    """What the page shows under a block, what the block printed, and where the page shows it."""

    name: str
    recorded: bool
    shown: str
    printed: str
    span: tuple[int, int]

    @property
    def agrees(self) -> bool:
        """Same words, and the same numbers to the digits shown; of what is recorded, the words alone."""
        if NUMBER.sub("#", self.shown).split() != NUMBER.sub("#", self.printed).split():
            return False
        pairs = zip(NUMBER.findall(self.shown), NUMBER.findall(self.printed), strict=True)
        return self.recorded or all(same(shown, printed) for shown, printed in pairs)


def same(shown: str, printed: str) -> bool:
    """Counts are equal; of other numbers, the last digit may differ by one, as rounding can make it."""
    one, other = Decimal(shown), Decimal(printed)
    if re.fullmatch(r"[+-]?\d+", shown):
        return one == other
    return abs(one - other) <= max(Decimal(1).scaleb(int(number.as_tuple().exponent)) for number in (one, other))


def run(text: str, filename: str = str(PAGE)) -> tuple[list[Output], dict[str, Any]]:
    """Run the Python blocks of a page in order: what they printed, and the names that they leave."""
    namespace: dict[str, Any] = {"__name__": "page"}
    outputs = []
    for block in BLOCK.finditer(text):
        line = text[: block.start("code")].count("\n")
        with redirect_stdout(io.StringIO()) as stdout:
            # Empty lines in front, so that a traceback names the page's own line.
            exec(compile("\n" * line + block["code"], filename, "exec"), namespace)
        if block["kind"]:
            recorded, shown = block["kind"] == "recorded", dedent(block["shown"]).strip()
            printed = stdout.getvalue().strip()
            if block["kind"] == "finding":
                kind, name = block["name"].split()
                printed = "\n".join(wrap(first_finding(kind, namespace[name]), 112))
            outputs.append(Output(block["name"], recorded, shown, printed, block.span("shown")))
    return outputs, namespace


def mended(text: str, outputs: list[Output]) -> str:
    """The page with what was printed wherever it shows something else."""
    for output in reversed(outputs):
        if not output.agrees:
            start, end = output.span
            text = f"{text[:start]}\n{indent(output.printed, '    ')}\n\n{text[end:]}"
    return text


if __name__ == "__main__":
    torch.set_num_threads(1)
    for path in SHOWING:
        page = path.read_text(encoding="utf-8")
        outputs, _ = run(page, str(path))
        path.write_text(mended(page, outputs), encoding="utf-8")
        changed = ", ".join(output.name for output in outputs if not output.agrees)
        print(f"{path.name}: mended {changed or 'nothing'}")
