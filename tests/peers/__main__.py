"""``python -m peers``: holds every peer to every law, compares what comes out with what is known, and writes
``docs/peers.md``."""

import importlib.metadata
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import transformers
from rich.progress import track

from pressgauge.conformance import plugin

# How many examples a law draws is read when it is imported.
plugin.load_profile()

from laws import LAWS, judged_by_all, words  # noqa: E402

from peers.catalogue import PEERS  # noqa: E402
from peers.deviations import FOLDER, Deviation, about, compare, read  # noqa: E402

PAGE = Path(__file__).parents[2] / "docs" / "peers.md"

INTRODUCTION = """# Peers

Written by `nox -s peers`, on transformers {transformers} and kvpress {kvpress}. Each of {peers} compressors that are
not ours is held to each of the {laws} laws of `tests/conformance/`, on a tiny random Llama. It is held to what it says
of itself: kvpress's presses to acting on the prompt alone (or on decoding alone), to rounding down, and to positions
that the caller supplies. What departs from that is listed below, with the first finding of each law, why, and whether
it matters; laws about dtypes are held to in float16. The same stands in `tests/peers/deviations/`; the run fails where
something departs that is not listed, and where something is listed that no longer departs.
"""

TREND = words(LAWS["test_nll_does_not_fall_as_less_is_kept"])

Outcomes = dict[str, tuple[str, str]]
"""By law in words: what came out, and the finding or the reason."""


def outcomes(name: str) -> Outcomes:
    """One peer against every law."""
    return judged_by_all(PEERS[name])


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("*", "\\*")


def page(found: dict[str, Outcomes], known: dict[str, list[Deviation]]) -> Iterator[str]:
    """The page in words."""
    kvpress = importlib.metadata.version("kvpress")
    yield INTRODUCTION.format(transformers=transformers.__version__, kvpress=kvpress, peers=len(found), laws=len(LAWS))
    yield "| peer | held | broken or crashed | not applicable |"
    yield "| --- | ---: | ---: | ---: |"
    for name, laws in found.items():
        results = [result for result, _ in laws.values()]
        departs = results.count("broken") + results.count("crashed")
        yield f"| [{name}](#{name}) | {results.count('held')} | {departs} | {results.count('not applicable')} |"
    for name, laws in found.items():
        yield ""
        yield f"## {name}"
        yield ""
        yield about(FOLDER / f"{name}.txt")
        yield ""
        yield f"Trend: {laws[TREND][1].partition(': ')[2]}."
        yield ""
        if not known[name]:
            yield "Nothing departs."
            continue
        yield "| law | first finding | why | does it matter |"
        yield "| --- | --- | --- | --- |"
        for one in known[name]:
            finding = laws[one.law][1] if one.law in laws else ""
            law = one.law if one.outcome == "broken" else f"{one.law} (it crashes)"
            yield f"| {law} | `{finding.replace('|', '/')}` | {_cell(one.why)} | {_cell(one.matters)} |"


def main() -> None:
    """Measure, compare, write."""
    with ProcessPoolExecutor() as pool:
        measured = list(track(pool.map(outcomes, PEERS), "holding", total=len(PEERS)))
    found = dict(zip(PEERS, measured, strict=True))
    known = {name: read(FOLDER / f"{name}.txt") for name in PEERS}
    PAGE.write_text("\n".join(page(found, known)) + "\n", encoding="utf-8")
    for name, laws in found.items():
        for law, (result, finding) in laws.items():
            print(f"{name}: {result}: {law}{f': {finding}' if finding else ''}")
    wrong = [f"{name}: {sentence}" for name in PEERS for sentence in compare(known[name], found[name])]
    if wrong:
        raise SystemExit("\n".join(["", "Not as tests/peers/deviations/ says:", *wrong]))
    print(f"{len(PEERS)} peers, {sum(map(len, known.values()))} deviations, all of them known.")


if __name__ == "__main__":
    main()
