"""Outcomes of the laws in a run of pytest: the summary in the terminal, and as JSON or a Markdown table."""

import json
import re
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from pressgauge.conformance.known import Known, unmatched

REFUSED = "refused"
"""Name of the report property that lists a subject's refusals."""

NOTED = "noted"
"""Name of the report property that lists observations which break no law."""

KNOWN = "known"
"""Name of the report property with a known finding and its reason."""

AUDITED = "pressgauge_audited"
"""Name under which a worker of pytest-xdist passes on the descriptions of what is under audit."""

UNUSABLE = "pressgauge_unusable"
"""Name under which it passes on why something cannot be audited."""


@dataclass
class Law:
    """Outcome of one law over all its cases."""

    words: str
    place: tuple[str, int]
    """File and line, which give the order of the summary."""
    held: int = 0
    broken: dict[str, list[str]] = field(default_factory=dict)
    """Findings, each with its models or dtypes if there are several."""
    known: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    """Known findings with their reasons, each with its cases."""
    refused: list[str] = field(default_factory=list)
    """The subject's messages about cases that were not checked."""
    not_applicable: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """Observations that break no law."""
    stopped_by: str = ""
    """Another law with the same crash, if this one says nothing else."""
    stops: int = 0
    """Number of laws that are stopped by its crash."""

    @property
    def outcome(self) -> str:
        """``broken``, ``known``, ``held`` or ``not applicable``."""
        if self.stopped_by:
            return "not applicable"
        if self.broken:
            return "broken"
        return "known" if self.known else "held" if self.held else "not applicable"

    @property
    def findings(self) -> list[str]:
        """Findings with their cases; known ones with their reasons."""
        if self.stopped_by:
            return []
        found = [_with_cases(finding, cases) for finding, cases in self.broken.items()]
        known = [f"{_with_cases(finding, cases)} (known: {why})" for (finding, why), cases in self.known.items()]
        same = f"the same crash stops {self.stops} more law{'s' if self.stops > 1 else ''}"
        return found + known + [same] * bool(self.stops)

    @property
    def reasons(self) -> list[str]:
        """Why it is not applicable, each reason once."""
        stopped = [f"the same crash as in: {self.stopped_by}"] if self.stopped_by else []
        return list(dict.fromkeys(stopped + self.not_applicable))

    @property
    def crash(self) -> str:
        """Type and message of the crash that is all that was found, with numbers replaced; empty if there is more."""
        found = [re.search(r"crashes: (\w+(?:: .*)?)$", finding, re.DOTALL) for finding in self.broken]
        kinds = {re.sub(r"\d+", "N", one[1]) if one else "" for one in found}
        return kinds.pop() if len(kinds) == 1 and not self.known else ""


RELEASES = ("pressgauge", "torch", "transformers")
"""Packages whose versions are in the files."""

OUTCOMES = ("broken", "known", "held", "not applicable")
"""Outcomes of a law, in the order of the summary."""


class Laws:
    """Collector of the laws' outcomes, printed in the summary: broken, known, held, not applicable.

    Args:
        subjects: what is under audit, a description each.
        known: known findings.
        files: files for the summary, ``.json`` or ``.md``.
    """

    def __init__(
        self, subjects: list[str] | None = None, known: list[Known] | None = None, files: list[Path] | None = None
    ) -> None:
        self.subjects, self.known, self.files = subjects or [], known or [], files or []
        self.laws: dict[str, Law] = {}
        self.vacuous: dict[str, list[str]] = {}
        """Findings that a subject does nothing, each with its cases."""
        self.unusable = ""
        """Why what is under audit cannot be used, if only workers of pytest-xdist load it."""
        self.late: list[str] = []
        """Descriptions that workers passed on at their end."""

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """Take what a worker of pytest-xdist passes on."""
        output: dict[str, Any] = getattr(node, "workeroutput", None) or {}
        self.unusable = output.get(UNUSABLE, self.unusable)
        self.late = output.get(AUDITED, self.late)
        self.subjects = self.late or self.subjects

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        file, line, name = report.location
        if Path(file).parent.name not in ("conformance", "measuring", "laws"):
            return
        name = name.partition("[")[0]
        law = self.laws.setdefault(name, Law(in_words(name), (file, line or 0)))
        law.notes += _listed(report, NOTED)
        if report.failed:
            finding = finding_of(report)
            law.broken.setdefault(finding, []).append(_case(report))
            if _kind(report) == "Vacuous":
                self.vacuous.setdefault(finding, []).append(_case(report))
        elif known := _listed(report, KNOWN):
            finding, why = known
            law.known.setdefault((finding, why), []).append(_case(report))
        elif report.skipped:
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            law.not_applicable.append(reason.removeprefix("Skipped: ").removeprefix("not applicable: "))
        elif report.when == "call":
            law.held += 1
            law.refused += _listed(report, REFUSED)

    def in_order(self) -> list[Law]:
        """Laws by outcome, and those that come first before the others. Of laws with the same crash, the first one is
        broken, and the others are not applicable: one cause, one finding."""
        # They are in a file of their own.
        places = {law.words: (Path(law.place[0]).name != "test_smoke.py", law.place) for law in self.laws.values()}
        first: dict[str, Law] = {}
        for law in sorted(self.laws.values(), key=lambda law: places[law.words]):
            law.stopped_by, law.stops = "", 0
            if law.crash and (leader := first.setdefault(law.crash, law)) is not law:
                law.stopped_by, leader.stops = leader.words, leader.stops + 1
        return sorted(self.laws.values(), key=lambda law: (OUTCOMES.index(law.outcome), places[law.words]))

    def unmatched(self, selected: bool) -> list[Known]:
        """Known findings that were not made.

        Args:
            selected: whether only some laws were run; entries of others are then left out.
        """
        ran = {law.words for law in self.laws.values()}
        made = [(law.words, finding) for law in self.laws.values() for finding, _ in law.known]
        return unmatched([one for one in self.known if one.law in ran or not selected], made)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if hasattr(session.config, "workerinput"):
            return
        if self.unusable:
            raise pytest.UsageError(self.unusable)
        if self.unmatched(_selected(session.config)) and session.exitstatus in (
            pytest.ExitCode.OK,
            pytest.ExitCode.NO_TESTS_COLLECTED,
        ):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        for path in self.files:
            text = self.as_json(session.config) if path.suffix == ".json" else self.as_markdown()
            path.write_text(text, encoding="utf-8")

    def counts(self) -> dict[str, int]:
        """Number of laws by outcome."""
        outcomes = [law.outcome for law in self.in_order()]
        return {outcome: outcomes.count(outcome) for outcome in OUTCOMES}

    def as_json(self, config: pytest.Config) -> str:
        """All outcomes with findings, reasons and notes."""
        laws = [
            {
                "law": law.words,
                "outcome": law.outcome,
                "findings": [
                    {"finding": finding, "cases": _cases(cases)}
                    for finding, cases in law.broken.items()
                    if not law.stopped_by
                ],
                "known": [
                    {"finding": finding, "reason": why, "cases": _cases(cases)}
                    for (finding, why), cases in law.known.items()
                ],
                "reasons": law.reasons,
                "refused": list(dict.fromkeys(law.refused)),
                "notes": list(dict.fromkeys(law.notes)),
            }
            for law in self.in_order()
        ]
        whole = {
            "subjects": self.subjects,
            "releases": {name: version(name) for name in RELEASES},
            "vacuous": list(self.vacuous),
            "counts": self.counts(),
            "laws": laws,
            "known findings that were not made": [asdict(one) for one in self.unmatched(_selected(config))],
        }
        return json.dumps(whole, indent=2, ensure_ascii=False) + "\n"

    def as_markdown(self) -> str:
        """A table of the laws, for a README."""
        releases = ", ".join(f"{name} {version(name)}" for name in RELEASES)
        lines = [*(f"{subject}; {releases}  " for subject in self.subjects), self._counted(), ""]
        lines += ["| law | outcome | finding |", "| --- | --- | --- |"]
        for law in self.in_order():
            said = law.findings or (law.reasons if law.outcome == "not applicable" else [])
            cells = [law.words, law.outcome, "; ".join(said)]
            lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
        return "\n".join(lines) + "\n"

    def _counted(self) -> str:
        counts = self.counts()
        known = f"{counts['known']} known, " if counts["known"] else ""
        return (
            f"{counts['broken']} laws broken, {known}{counts['held']} held, {counts['not applicable']} not applicable"
        )

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
        write = terminalreporter
        write.section("laws")
        for subject in self.late:
            write.write_line(subject)
        for finding, cases in self.vacuous.items():
            write.write_line(f"vacuous         {_with_cases(finding, cases)}", red=True)
        for one in self.unmatched(_selected(config)):
            write.write_line(f"not found       a known finding: {one}", red=True)
        laws = self.in_order()
        for law in laws:
            if law.outcome in ("broken", "known"):
                colour = {"red": True} if law.broken else {"yellow": True}
                write.write_line(f"{law.outcome:<16}{law.words}", **colour)
                for line in law.findings:
                    write.write_line(f"                {line}")
                self._write_notes(write, law)
        for law in laws:
            if law.outcome == "held":
                write.write_line(f"held            {law.words}", green=True)
                for reason in dict.fromkeys(law.not_applicable):
                    write.write_line(f"                but for some models: {reason}")
                for sentence in dict.fromkeys(law.refused):
                    write.write_line(f"                but for cases that the subject refuses: {sentence}")
                self._write_notes(write, law)
        groups: dict[tuple[str, ...], list[Law]] = {}
        for law in laws:
            if law.outcome == "not applicable":
                groups.setdefault(tuple(law.reasons), []).append(law)
        for reasons, some in groups.items():
            for law in some:
                write.write_line(f"not applicable  {law.words}", yellow=True)
            for reason in reasons:
                write.write_line(f"                {reason}")
        write.write_line(self._counted())

    @staticmethod
    def _write_notes(write: pytest.TerminalReporter, law: Law) -> None:
        for sentence in dict.fromkeys(law.notes):
            write.write_line(f"                note: {sentence}")


def _selected(config: pytest.Config) -> bool:
    """Whether only some laws are run."""
    return bool(config.getoption("keyword") or config.getoption("markexpr") or config.getoption("deselect"))


def _cases(cases: list[str]) -> list[str]:
    return [case for case in cases if case]


def in_words(name: str) -> str:
    """A law in words, given the name of its test."""
    return name.partition("[")[0].removeprefix("test_").replace("_", " ")


def finding_of(report: pytest.TestReport) -> str:
    """First line of a failure's message."""
    line, kind = _first_line(report), _kind(report)
    if kind in ("Departure", "Unreadable", "Vacuous"):
        return line.partition(": ")[2]
    return f"it crashes: {line}" if kind.endswith(("Error", "Exception")) and kind != "AssertionError" else line


def _listed(report: pytest.TestReport, name: str) -> list[str]:
    """Sentences in the report property of this name."""
    values: list[Any] = [value for what, value in report.user_properties if what == name]
    return [sentence for sentences in values for sentence in sentences]


def _case(report: pytest.TestReport) -> str:
    """Model or dtype of a case, if the law is parametrised."""
    parameters = report.location[2].partition("[")[2].removesuffix("]")
    # A subject is named package.module:factory, with its options in parentheses if they are varied.
    options = re.search(r":[^-(]*\((.*)\)", parameters)
    rest = parameters.replace(options[0], ":") if options else parameters
    model = "-".join(part for part in rest.split("-") if ":" not in part)
    return ", ".join(part for part in (options[1] if options else "", model) if part)


def _with_cases(finding: str, cases: list[str]) -> str:
    which = ", ".join(_cases(cases))
    return f"{finding}{f' ({which})' if which else ''}"


def _first_line(report: pytest.TestReport) -> str:
    crash = getattr(report.longrepr, "reprcrash", None)
    message = crash.message if crash is not None else str(report.longrepr)
    return next((line for line in message.splitlines() if line.strip()), "no message")


def _kind(report: pytest.TestReport) -> str:
    """Class of a failure."""
    return _first_line(report).partition(": ")[0].rpartition(".")[2]
