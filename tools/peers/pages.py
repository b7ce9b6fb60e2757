"""``docs/peers.md``, a line per package, and a page each, written from what was measured."""

from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

from peers.known import Known, known
from tools.peers.measured import OUTCOMES, PACKAGES, Law, Measured, read

DOCS = Path(__file__).parents[2] / "docs"

TABLE = """# Third-party compressors

Each package runs against all {laws} laws on a tiny Llama, in an environment of its own, by the call that its README
documents, and is held to what its README promises. `nox -s "peers(NAME)"` installs a package, verifies its findings, runs the laws, and
writes this table and the package's page. The environments and their pins are in `tests/peers/packages.toml`, the
adapters in `tests/peers/packages/`. Findings that the laws report are listed in `tests/peers/known/` with their cause;
a run fails if one is not listed, or no longer occurs. The scripts in `tests/peers/verify/` verify the findings with
torch and transformers alone. [kvpress's presses](peers/kvpress.md) have their own page.

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
        reasons = [one.reason for one in listed if one.law == name and _matches(law.findings, one.pattern)]
        finding = law.findings[0].replace("|", "/").replace("`", "")
        yield f"| {name} | `{finding}` | {cell(reasons[0] if reasons else '')} |"


def _matches(findings: list[str], pattern: str) -> bool:
    return any(fnmatchcase(finding, pattern.replace("[", "[[]")) for finding in findings)


def differences(measured: Measured) -> list[str]:
    """Sentences about findings that are not listed, and listed ones that do not occur."""
    wrong = []
    for subject, laws in measured.subjects.items():
        listed = known(subject)
        for name, law in laws.items():
            patterns = [one.pattern for one in listed if one.law == name]
            if law.result == "broken":
                wrong += [
                    f"{subject}: not listed: {name}: {finding}"
                    for finding in law.findings
                    if not any(_matches([finding], pattern) for pattern in patterns)
                ]
        wrong += [
            f"{subject}: listed, and not found: {one.law}: {one.pattern}"
            for one in listed
            if not _matches(laws[one.law].findings if one.law in laws else [], one.pattern)
        ]
    return wrong


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
