"""Compare the survivors of a mutmut run with ``equivalent.txt``, the list of equivalent mutants with reasons.

``python -m tools.survivors [MODULE...]`` in the folder where ``mutmut run`` ran on these modules.
"""

import re
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

EQUIVALENT = Path(__file__).with_name("equivalent.txt")
KILLED = {"killed", "timeout"}

Change = tuple[str, ...]
"""The function, then removed and added lines with their signs.

mutmut numbers its mutants anew after every edit, so a number does not identify one.
"""


def listed(text: str) -> dict[Change, str]:
    """Changes of a list with their reasons. A reason is a line of its own, with its changes indented below."""
    changes: dict[Change, str] = {}
    reason = ""
    entry: Change = ()
    for line in [*text.splitlines(), ""]:
        signed = re.match(r"    ([-+]) *(.*)", line)
        if signed:
            entry = (*entry, f"{signed[1]} {signed[2]}")
            continue
        if len(entry) > 1:
            changes[entry] = reason
        entry = (line.strip(),) if line.startswith("    ") else ()
        if line and not line.startswith(("    ", "#")):
            reason = line
    return changes


def function(mutant: str) -> str:
    """``rules.ledger.Ledger.crop`` for ``pressgauge.rules.ledger.xǁLedgerǁcrop__mutmut_1``."""
    module, _, name = mutant.removeprefix("pressgauge.").rpartition(".")
    name = re.sub(r"__mutmut_\d+$", "", name)
    return f"{module}.{name.removeprefix('x').strip('ǁ').replace('ǁ', '.') if 'ǁ' in name else name.removeprefix('x_')}"


def change(mutant: str, diff: str) -> Change:
    """Change in the unified diff of a mutant."""
    lines = re.findall(r"^([-+])(?!--|\+\+) *(.*)$", diff, flags=re.MULTILINE)
    return (function(mutant), *(f"{sign} {line}" for sign, line in lines))


def mutmut(*arguments: str) -> str:
    """Output of mutmut."""
    return subprocess.run(["mutmut", *arguments], check=True, capture_output=True, text=True).stdout


def of_modules(known: dict[Change, str], modules: Sequence[str]) -> dict[Change, str]:
    """Listed changes in these modules or packages; all if none is named."""
    prefixes = tuple(f"{name.replace('/', '.')}." for name in modules)
    return {change: reason for change, reason in known.items() if not modules or change[0].startswith(prefixes)}


def main(modules: Sequence[str] = ()) -> int:
    """Print counts, unlisted survivors, and listed changes that did not survive."""
    fates = dict(re.findall(r"^ *(\S+): (.+)$", mutmut("results", "--all", "true"), flags=re.MULTILINE))
    if "not checked" in fates.values() or not fates:
        print("the run is not complete")
        return 1
    alive = {change(mutant, mutmut("show", mutant)): mutant for mutant, fate in fates.items() if fate not in KILLED}
    known = of_modules(listed(EQUIVALENT.read_text(encoding="utf-8")), modules)
    counts = Counter(fates.values())
    print(f"{len(fates)} mutants:", ", ".join(f"{count} {fate}" for fate, count in counts.most_common()))
    print(f"{len(alive)} changes survived, {len(known)} are listed as equivalent")
    unlisted, stale = sorted(alive.keys() - known.keys()), sorted(known.keys() - alive.keys())
    for survivor in unlisted:
        print(f"\nsurvived, and is not listed ({alive[survivor]}: {fates[alive[survivor]]}):")
        print(*survivor, sep="\n    ")
    for entry in stale:
        print("\nlisted as equivalent, and did not survive:", *entry, sep="\n    ")
    return 1 if unlisted or stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
