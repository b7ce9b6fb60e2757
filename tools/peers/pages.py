"""``docs/peers.md``, a line per package, and a page each, written from what was measured."""

from collections.abc import Iterator
from pathlib import Path

from peers.known import known
from pressgauge.conformance.known import Known, known_finding, unmatched
from tools.peers.measured import OUTCOMES, PACKAGES, Law, Measured, read

DOCS = Path(__file__).parents[2] / "docs"
MOST = 200
"""Characters of a finding on a page."""

TABLE = """# Third-party compressors

Each package runs against all {laws} laws on a tiny Llama, in an environment of its own, by the call that its README
documents, and is held to what its README promises. `nox -s "peers(NAME)"` installs a package, verifies its findings,
runs the laws, and writes this table and the package's page. The environments and their pins are in
`tests/peers/packages.toml`, the adapters in `tests/peers/packages/`. Findings of the laws are listed in
`tests/peers/known/` with their cause; a run fails if one is not listed, or no longer occurs. The scripts in
`tests/peers/verify/` verify findings with torch and transformers alone.

A package that was found to be wrong in one way may be right in others: the laws are about all uses of a cache, of which
some are rare. Releases may have changed since.

| package | way in | broken | held | not applicable | verified findings |
| --- | --- | ---: | ---: | ---: | ---: |"""


def table() -> Iterator[str]:
    """Lines of ``docs/peers.md``."""
    found = {package: read(package) for package in PACKAGES if (OUTCOMES / f"{package}.json").exists()}
    laws = max(len(laws) for measured in found.values() for laws in measured.subjects.values())
    yield TABLE.format(laws=laws)
    for package, measured in found.items():
        link = f"[{package}](peers/{package}.md) {measured.releases[_first(package)]}"
        way, scripts = PACKAGES[package]["way"], len(measured.verified)
        if not measured.subjects:
            yield f"| {link} | {way} | none | none | none | {scripts} |"
        for number, subject in enumerate(measured.subjects):
            name = f", `{subject.partition(':')[2]}`" if len(measured.subjects) > 1 else ""
            counts = " | ".join(str(measured.count(subject, result)) for result in ("broken", "held", "not applicable"))
            yield f"| {link}{name} | {way} | {counts} | {'' if number else scripts} |"


def page(package: str, measured: Measured) -> Iterator[str]:
    """Lines of the page of a package."""
    about = PACKAGES[package]
    yield f"# {package}"
    yield ""
    yield f"{about['title'][0].upper()}{about['title'][1:]}. Way in: {about['way']}."
    yield ""
    yield f"Measured with {', '.join(f'{name} {release}' for name, release in measured.releases.items())}."
    for subject, laws in measured.subjects.items():
        yield ""
        yield f"## Laws: `{subject}`"
        yield ""
        yield f"{_counts(measured, subject)}."
        yield ""
        yield from _broken(laws, known(subject))
    yield ""
    yield "## Verified findings"
    yield ""
    yield f"By `tests/peers/verify/test_{package.replace('-', '_')}.py`, with torch and transformers alone."
    yield ""
    yield "| finding | measured | right |"
    yield "| --- | --- | --- |"
    for one in measured.verified:
        yield f"| {cell(one.finding)} | {cell(one.measured)} | {cell(one.right)} |"


def _broken(laws: dict[str, Law], listed: list[Known]) -> Iterator[str]:
    broken = {name: law for name, law in laws.items() if law.result == "broken"}
    if not broken:
        yield "No law is broken."
        return
    yield "| broken law | first finding | cause |"
    yield "| --- | --- | --- |"
    for name, law in broken.items():
        one = known_finding(listed, name, law.findings[0])
        finding = short(law.findings[0]).replace("|", "/").replace("`", "")
        yield f"| {name} | `{finding}` | {cell(one.reason if one else '')} |"


def differences(measured: Measured) -> list[str]:
    """Sentences about findings that are not listed, and listed ones that do not occur."""
    wrong = []
    for subject, laws in measured.subjects.items():
        listed = known(subject)
        found = [(name, one) for name, law in laws.items() if law.result == "broken" for one in law.findings]
        wrong += [f"{subject}: not listed: {law}: {one}" for law, one in found if not known_finding(listed, law, one)]
        wrong += [f"{subject}: listed, and not found: {one}" for one in unmatched(listed, found)]
    return wrong


def short(text: str) -> str:
    """A finding, cut to what a cell holds."""
    return text if len(text) <= MOST else f"{text[:MOST].rstrip()} ..."


def _counts(measured: Measured, subject: str) -> str:
    broken, held, other = (measured.count(subject, result) for result in ("broken", "held", "not applicable"))
    return f"{broken} broken, {held} held, {other} not applicable"


def _first(package: str) -> str:
    return str(PACKAGES[package]["requires"][0].partition("==")[0])


def cell(text: str) -> str:
    """Text in a cell of a Markdown table."""
    return text.replace("|", "\\|").replace("*", "\\*")


def write(package: str, measured: Measured) -> None:
    """Write the page of a package, and the table."""
    (DOCS / "peers").mkdir(exist_ok=True)
    (DOCS / "peers" / f"{package}.md").write_text("\n".join(page(package, measured)) + "\n", encoding="utf-8")
    (DOCS / "peers.md").write_text("\n".join(table()) + "\n", encoding="utf-8")
