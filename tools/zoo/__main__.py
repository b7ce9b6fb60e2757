"""``python -m tools.zoo [NAME...]``: examine all causal architectures and write ``docs/zoo.md``, or the named ones."""

import argparse
import json
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path

from support.zoo import specimens
from support.zoo.examine import BAD, CRASH, Verdict, examine
from tools.zoo import isolated
from tools.zoo.page import page

PAGE = Path(__file__).parents[2] / "docs" / "zoo.md"


def _examined(name: str) -> str:
    return json.dumps(asdict(examine(name)))


def _verdict(text: str) -> Verdict:
    try:
        given = json.loads(text)
    except ValueError:
        return Verdict(CRASH, text)
    return Verdict(**{**given, "skipped": tuple(given["skipped"])})


def main() -> None:
    """Exit with 1 if a press is silently wrong on an architecture, crashes, or refuses it with a false message."""
    parser = argparse.ArgumentParser(prog="zoo", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="model types of transformers (default: all)")
    asked = parser.parse_args().names
    found: dict[str, Verdict] = {}
    names = asked or specimens.names()
    for name, text in isolated.each(_examined, names, workers=2):
        found[name] = _verdict(text)
        print(f"{name:28} {found[name].kind:15} {found[name].skipped or ''} {found[name].detail}", flush=True)
    print(", ".join(f"{kind}: {count}" for kind, count in Counter(one.kind for one in found.values()).items()))
    if not asked:
        PAGE.write_text(page(found), encoding="utf-8")
    sys.exit(any(one.kind in BAD for one in found.values()))


if __name__ == "__main__":
    main()
