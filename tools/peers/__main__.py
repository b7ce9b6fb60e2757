"""``python -m tools.peers PACKAGE``: measure the third-party package of this environment, and write its pages."""

import argparse

from tools.peers import pages
from tools.peers.measured import PACKAGES, read, write


def main() -> None:
    """Exit with 1 if a finding is not listed, or no longer occurs."""
    parser = argparse.ArgumentParser(prog="peers", description=__doc__)
    parser.add_argument("package", choices=list(PACKAGES))
    parser.add_argument("--pages", action="store_true", help="write the pages from what was measured before")
    asked = parser.parse_args()
    if not asked.pages:
        from tools.peers.measure import measure

        write(asked.package, measure(asked.package))
    measured = read(asked.package)
    pages.write(asked.package, measured)
    differences = pages.differences(measured)
    if differences:
        raise SystemExit("\n".join(["", "Results differ from tests/peers/known/:", *differences]))


if __name__ == "__main__":
    main()
