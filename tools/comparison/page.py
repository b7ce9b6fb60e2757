"""The page of the comparison: text, tables and plots."""

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import get_args

from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from pressgauge.presses import PRESSES
from pressgauge.rules import usual_prompt
from pressgauge.timing import Ratio
from tools.comparison.claims import CLAIMS, Claim, Verdict, verdict
from tools.comparison.measurements import PRUNE_AFTER, RATIOS, SAMPLED, SCHEDULES, Case, Change, Effect

Key = tuple[str, str, str, float]
"""The case's name, the press, the schedule and the ratio."""

UNSIZED = "step"
"""Schedule under which the ratio does not set the number of held entries, so claims are not tested."""
_COLOURS = ("#0072B2", "#D55E00", "#767676", "#CC79A7", "#009E73", "#E69F00", "#56B4E9")
COLOURS = dict(zip(PRESSES, cycle(_COLOURS)))


@dataclass(frozen=True)
class Comparison:
    """All measurements."""

    cases: Sequence[Case]
    effects: Mapping[Key, Effect]
    tpot: Mapping[tuple[str, str], Ratio]
    """By press and schedule, with ``keep_ratio`` .5."""
    machine: str
    elsewhere: str = ""
    """Another text and where its page is."""


def percent(found: Change) -> str:
    """``+12.3 % [10.1, 14.5]``."""
    return f"{100 * found.mean:+.1f} % [{100 * found.low:.1f}, {100 * found.high:.1f}]"


def nats(found: Change | None) -> str:
    """``+0.12 [0.08, 0.16]``."""
    return "" if found is None else f"{found.mean:+.2f} [{found.low:.2f}, {found.high:.2f}]"


def _judged(claim: Claim, schedule: str, found: Effect) -> str:
    if found.vacuous:
        return "nothing was evicted"
    if schedule == UNSIZED:
        return f"{percent(found.ppl)}: {found.held:.0f} held"
    return f"{percent(found.ppl)}: {verdict(claim, (found.ppl.low, found.ppl.high))}"


def claims(comparison: Comparison) -> Iterator[str]:
    """Table of the claims with their measurements."""
    yield "| claim | text | budget | step | prefill |"
    yield "| --- | --- | --- | --- | --- |"
    for claim in CLAIMS:
        for number, case in enumerate(comparison.cases):
            cells = [
                _judged(claim, schedule, comparison.effects[case.name, claim.press, schedule, claim.keep_ratio])
                for schedule in SCHEDULES
            ]
            yield f"| {'' if number else claim} | {case.name} | {' | '.join(cells)} |"


def tally(comparison: Comparison) -> Iterator[str]:
    """Table of the verdicts on each claim."""
    kinds = get_args(Verdict)
    yield f"| claim | {' | '.join(kinds)} |"
    yield f"| --- |{' ---: |' * len(kinds)}"
    for claim in CLAIMS:
        found = [
            verdict(claim, (effect.ppl.low, effect.ppl.high))
            for (_, press, schedule, ratio), effect in comparison.effects.items()
            if (press, ratio) == (claim.press, claim.keep_ratio) and schedule != UNSIZED and not effect.vacuous
        ]
        yield f"| {claim} | {' | '.join(str(found.count(one)) for one in kinds)} |"


def figures(comparison: Comparison, case: Case) -> Iterator[str]:
    """Table of all measurements of one case."""
    facts = any(effect.recalled for key, effect in comparison.effects.items() if key[0] == case.name)
    yield f"| press | schedule | keep_ratio | perplexity |{' recalled facts, nats |' if facts else ''} held |"
    yield f"| --- | --- | ---: | ---: |{' ---: |' if facts else ''} ---: |"
    for press in PRESSES:
        for schedule in SCHEDULES:
            for ratio in RATIOS:
                found = comparison.effects[case.name, press, schedule, ratio]
                cells = [press, schedule, f"{ratio:g}", percent(found.ppl), *([nats(found.recalled)] if facts else [])]
                yield f"| {' | '.join(cells)} | {found.held:.0f} |"


def times(comparison: Comparison) -> Iterator[str]:
    """Table of time per token, as a ratio to the uncompressed model."""
    yield "| press | budget | step | prefill |"
    yield "| --- | ---: | ---: | ---: |"
    for press in PRESSES:
        cells = [str(comparison.tpot[press, schedule]) for schedule in SCHEDULES]
        yield f"| {press} | {' | '.join(cells)} |"


def picture(comparison: Comparison, case: Case) -> Figure:
    """Plot of the change of perplexity by ratio, one panel per schedule; claims as bars."""
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    panels = figure.subplots(1, len(SCHEDULES), sharey=True)
    for axes, schedule in zip(panels, SCHEDULES, strict=True):
        for press, colour in COLOURS.items():
            found = [comparison.effects[case.name, press, schedule, ratio].ppl for ratio in RATIOS]
            axes.plot(RATIOS, [one.mean for one in found], color=colour, marker="o", markersize=3, label=press)
            axes.fill_between(
                RATIOS, [one.low for one in found], [one.high for one in found], color=colour, alpha=0.15, linewidth=0
            )
        for claim in CLAIMS:
            axes.vlines(
                claim.keep_ratio, claim.low, max(claim.high, claim.low + 0.004), color=COLOURS[claim.press],
                linewidth=5, alpha=0.6,
            )  # fmt: skip
        axes.set_title(schedule, loc="left")
        axes.set_xlabel("keep_ratio")
        axes.invert_xaxis()
        axes.set_yscale("symlog", linthresh=0.1)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.grid(color="#e4e4e4")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("change of perplexity")
    panels[-1].legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def words(case: Case) -> str:
    """Description of a case."""
    text = {SAMPLED: "sampled from the model itself", "reference": "of the reference language"}.get(case.text, "")
    what = f"**{case.name}**: {case.documents} documents of {case.tokens} tokens{f' {text}' if text else ''}."
    return f"{what} {case.remark}".strip()


INTRODUCTION = """
Written by `{command}`. Reports compare KnormPress with H2O, StreamingLLM and SnapKV in a table of perplexity changes
that were not measured under the same conditions. Here all presses run on the same documents and models, each with the
defaults of this package (the [API](api.md) notes where papers use others), in one pass in float64. Both arms score the
same tokens. A change is the exponential of the mean NLL difference over documents, with its 95 % confidence interval
(Student's t, over documents). Layers with up to {least} entries evict nothing; no layer is skipped. Under `budget` and
`step` tokens are fed one by one. Under `prefill` the first three quarters, {prompt} of {all} tokens, are one pass,
after which the press acts once, and the last quarter is scored. `random` is the baseline for all presses.
"""
VERDICTS = """
A claim *holds* if the confidence interval lies within the claimed range, *fails* if they are disjoint, since perplexity
rises by more or by less, and *cannot be decided* otherwise. An upper bound also holds for any decrease. The reports are
not published and give neither a schedule nor a text, so each claim is tested on all texts and on the two schedules
under which the ratio sets the number of held entries. Under `step` at most {least} entries are retained at any ratio,
so the change is shown with the number held, and is not counted. Under `prefill` the ratio is that of the prompt. The
verdicts are for these models and may differ for much larger ones.
"""
TIMES = """
Time per output token as a ratio to the same model uncompressed, with a `keep_ratio` of .5: the median of pairs with its
95 % confidence interval, on {machine}. It depends on the machine and the model. Small models spend most of their time
in Python, and unlike all other figures, these vary from run to run.
"""


def paragraph(text: str, **values: object) -> str:
    """Wrap a text at 120 characters."""
    text = " ".join(text.format(**values).split())
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)


def page(comparison: Comparison, command: str, names: Mapping[str, str]) -> Iterator[str]:
    """Lines of the page; ``names`` are the files of the plots, by case."""
    longest = max(comparison.cases, key=lambda case: case.tokens)
    yield "# The claims of reports, measured"
    yield ""
    yield paragraph(
        INTRODUCTION,
        command=command,
        least=PRUNE_AFTER,
        prompt=usual_prompt(["prefill"], longest.tokens),
        all=longest.tokens,
    )
    yield ""
    for case in comparison.cases:
        yield f"- {words(case)}"
    if comparison.elsewhere:
        yield f"- {comparison.elsewhere}"
    yield ""
    yield "## The claims"
    yield ""
    yield paragraph(VERDICTS, least=PRUNE_AFTER)
    yield ""
    yield from tally(comparison)
    yield ""
    yield from claims(comparison)
    yield ""
    yield "## The curves"
    yield ""
    yield "Bands are 95 % confidence intervals, bars the claims. The scale is linear up to 10 % and logarithmic beyond."
    for case in comparison.cases:
        yield ""
        yield f"![{case.name}]({names[case.name]})"
    for case in comparison.cases:
        yield ""
        yield f"## All figures: {case.name}"
        yield ""
        yield from figures(comparison, case)
    if comparison.tpot:
        yield ""
        yield "## Time per token"
        yield ""
        yield paragraph(TIMES, machine=comparison.machine)
        yield ""
        yield from times(comparison)
