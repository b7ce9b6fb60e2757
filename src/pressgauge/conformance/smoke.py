"""Checks that come first: a subject runs, its cache can be read and was used, and it does what it declares to do.

If one fails, no other law is applicable: one cause, one finding.
"""

import functools
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from pressgauge.conformance import architectures, oracle
from pressgauge.conformance.generating import PROMPT, check_compresses, tokens_of
from pressgauge.conformance.outcomes import OF_OTHERS, Departure, Refused, Vacuous, not_applicable, note
from pressgauge.conformance.session import Trace, run
from pressgauge.conformance.subjects import Subject
from pressgauge.conformance.traces import uncompressed
from pressgauge.conformance.versions import CACHE, CACHE_NAMES

LENGTHS = (40, 300, 1200)
"""Lengths of texts, the longer ones for subjects that alter or evict only beyond a window."""
ALTERED = ("altered", "quantised")
"""Declarations of entries that differ from those passed in."""


def _passes(length: int) -> list[int]:
    return [length - 4] + [1] * 4


def _run(subject: Subject, keep_ratio: float, lengths: list[int]) -> Trace:
    model = architectures.under_test("llama")
    ids = architectures.text(model, 1, sum(lengths))
    return run(subject, model, ids, lengths, keep_ratio=keep_ratio, prune_after=8)


def check_runs(subject: Subject) -> None:
    """Check that a subject runs on a tiny Llama, that its cache can be read, and that passes attend to it.

    Raises:
        Departure: if it crashes, its cache cannot be read, or was not used.
        Refused: if it declines a text in passes and in one pass, with a ratio of .5 and of 1.
    """
    if subject.adapter.opaque:
        _check_generates(subject)
        return
    refused = []
    for lengths in (_passes(LENGTHS[0]), [LENGTHS[0]]):
        for keep_ratio in (0.5, 1.0):
            try:
                trace = _run(subject, keep_ratio, lengths)
            except Refused as refusal:
                refused.append(refusal)
                continue
            except Departure:
                raise
            except Exception as error:
                raise Departure(_crash(error, f"with keep_ratio {keep_ratio} and passes of {lengths}")) from error
            _check_used(trace)
            _check_runs_beyond_windows(subject, keep_ratio)
            return
    raise refused[0]


def _check_runs_beyond_windows(subject: Subject, keep_ratio: float) -> None:
    """Raise ``Departure`` if a subject crashes beyond the usual windows of 128 tokens, met by single tokens, a chunk or
    a prompt."""
    for lengths in ([124, *[1] * 8, 168], _passes(LENGTHS[1])):
        try:
            _run(subject, keep_ratio, lengths)
        except (Refused, Departure):
            # Other laws judge it.
            continue
        except Exception as error:
            raise Departure(_crash(error, f"with keep_ratio {keep_ratio} and passes of {lengths}")) from error


def _check_generates(subject: Subject) -> None:
    """Raise ``Departure`` if a function does not continue a prompt."""
    model = architectures.under_test("llama")
    try:
        tokens_of(subject, model, architectures.text(model, 1, PROMPT), keep_ratio=0.5, prune_after=8)
    except (Refused, Departure):
        raise
    except Exception as error:
        raise Departure(_crash(error, f"with keep_ratio 0.5 and a prompt of {PROMPT} tokens")) from error


def _crash(error: Exception, when: str) -> str:
    kind = f"{type(error).__name__}: {' '.join(str(error).split())}".strip()
    # The cache argument has different names in different releases.
    if isinstance(error, KeyError | AttributeError | TypeError) and any(name in str(error) for name in CACHE_NAMES):
        return (
            f"the compressor never received a cache: {kind}; in transformers {transformers.__version__} models and "
            f"layers take it as {CACHE!r}"
        )
    frames = traceback.walk_tb(error.__traceback__)
    own = [(frame.f_code.co_filename, line) for frame, line in frames if not _of_others(frame.f_globals)]
    place = f" ({Path(own[-1][0]).name}, line {own[-1][1]})" if own else ""
    return f"it does not run on a tiny Llama {when}: {kind}{place}"


def _of_others(module: Mapping[str, Any]) -> bool:
    """Whether a module, by its globals, belongs to torch, transformers or this package."""
    return str(module.get("__name__", "")).partition(".")[0] in OF_OTHERS


@torch.no_grad()
def _check_used(trace: Trace) -> None:
    """Raise ``Departure`` if a layer holds nothing, or no later pass attended to what was held."""
    first = trace.passes[0]
    for layer, (keys, _) in enumerate(first.held):
        if keys.shape[2] == 0:
            raise Departure(
                f"layer {layer} holds no entries after {first.end} tokens, as far as they can be read; if they are not "
                "in its attributes keys and values, declare read"
            )
    if len(trace.passes) == 1:
        return
    later = range(first.end, trace.passes[-1].end)
    # A token that attends only to itself has the same logits at any position.
    alone = [trace.model(trace.ids[:, t : t + 1].to(trace.model.device), use_cache=False).logits.cpu() for t in later]
    found = trace.logits[:, first.end :]
    if (found - torch.cat(alone, dim=1)).abs().max() <= 1e-6 * found.abs().max():
        raise Departure(
            f"no pass attended to the cache: the logits of tokens {later[0]} to {later[-1]} are those of each token "
            "alone, without the tokens before it"
        )


def check_acts(subject: Subject) -> None:
    """Check that a subject does what it declares, at settings at which it does: evict, or alter entries.

    Raises:
        Vacuous: if it did nothing: all entries are held as they were passed in, with the logits of a DynamicCache.
        Departure: if it declares evictions, and evicts nothing.
        Refused: if it declines.
    """
    if subject.adapter.opaque:
        check_compresses(subject)
        return
    declares, claims = subject.declares, set()
    for length in LENGTHS:
        lengths = _passes(length)
        rules = subject.rules({"keep_ratio": 0.5, "prune_after": 8})
        evicts = oracle.counts(rules, lengths)[-1] < length
        if not evicts and declares.entries not in ALTERED:
            continue
        trace = _run(subject, 0.5, lengths)
        evicted = any(keys.shape[2] < one.end for one in trace.passes for keys, _ in one.held)
        altered = not evicted and not _as_a_dynamic_cache(trace)
        if evicted or (altered and not evicts):
            if evicted and length > LENGTHS[0]:
                note(
                    f"nothing is evicted from {LENGTHS[0]} tokens: most laws feed fewer, and say nothing about "
                    "evictions; audit it with a smaller window as well"
                )
            return
        claims.add("evictions" if evicts else f"entries as {declares.entries}")
        if altered:
            raise Departure(
                f"nothing was evicted from {length} tokens with keep_ratio 0.5 and prune_after 8; if the subject only "
                "alters entries, declare its target"
            )
        if evicts:
            break
    if not claims:
        if first := subject.evicts_from:
            raise Vacuous(
                f"nothing is evicted from texts of up to {LENGTHS[-1]} tokens, as laws feed them, since its target "
                f"evicts from {first} tokens on: audit it with a smaller window"
            )
        not_applicable("the subject declares neither evictions from texts of this length nor altered entries")
    raise Vacuous(
        f"nothing was evicted from {length} tokens with keep_ratio 0.5 and prune_after 8, and nothing altered: entries "
        f"and logits are those of a DynamicCache, to the bit; declared are {' and '.join(sorted(claims))}"
    )


def check_alters(subject: Subject) -> None:
    """Check that a subject that evicts, and declares entries as altered, alters some.

    Raises:
        Departure: if every held entry is one that was passed in.
    """
    if subject.declares.entries not in ALTERED or subject.adapter.opaque:
        return
    for length in LENGTHS:
        trace = _run(subject, 0.5, _passes(length))
        if any(not _kept(trace, layer, part) for layer in range(trace.layers) for part in _parts(subject)):
            return
    raise Departure(
        f"entries are declared as {subject.declares.entries}, and of up to {length} tokens every key and value read "
        "back is one that was passed in, to the bit"
    )


def _parts(subject: Subject) -> tuple[int, ...]:
    """Keys and values, or values only if keys are rotated anew."""
    return (1,) if subject.declares.positions == "rerotated" else (0, 1)


def _kept(trace: Trace, layer: int, part: int) -> bool:
    """Whether each held key, or value, of a layer is one of those passed in, to the bit."""
    held, arrived = trace.passes[-1].held[layer][part], trace.arrived(layer)[part]
    same = [(row[:, :, None] == own[:, None]).all(-1).any(-1).all() for row, own in zip(held, arrived, strict=True)]
    return all(bool(one) for one in same)


@torch.no_grad()
def _as_a_dynamic_cache(trace: Trace) -> bool:
    """Whether entries after every pass, and logits, are those of a ``DynamicCache``: to the bit, but for logits of
    functions, which run on attention of the harness."""
    for layer in range(trace.layers):
        arrived = trace.arrived(layer)
        for one in trace.passes:
            pairs = zip(one.held[layer], arrived, strict=True)
            if not all(torch.equal(mine, own[:, :, : one.end]) for mine, own in pairs):
                return False
    expected, _ = uncompressed(trace.model, trace.ids, trace.lengths, trace.subject.entries_dtype)
    if trace.subject.adapter.exact:
        return torch.equal(trace.logits, expected)
    return bool((trace.logits - expected).abs().max() <= 1e-6 * expected.abs().max())


FIRST: dict[str, Callable[[Subject], None]] = {
    "test_it_runs_and_its_cache_can_be_read": check_runs,
    "test_something_is_evicted_or_altered": check_acts,
}
"""Laws that come first, and their checks: if one finds something, the following laws are not applicable."""

OPAQUE = "test_generating"
"""File of the laws for functions that generate."""


def concerns(file: str, subject: Any) -> bool:
    """Whether the laws of a file, named without its ending, concern a subject.

    Those that come first concern all, those for functions that generate only such functions, which no others concern,
    and those for quantised entries only subjects that declare them.
    """
    if file == "test_smoke" or not isinstance(subject, Subject):
        return True
    if file.startswith("test_quantised") and not subject.declares.quantised:
        return False
    return bool(subject.adapter.opaque) == (file == OPAQUE)


def require_dtype(subject: Subject, dtype: Any) -> None:
    """Skip a law about a dtype that a subject does not declare."""
    if subject.declares.dtypes and dtype not in subject.declares.dtypes:
        not_applicable(f"the subject declares other dtypes than {dtype}")


@functools.cache
def _finding(name: str, subject: Subject) -> Departure | None:
    try:
        FIRST[name](subject)
    except Departure as finding:
        return finding
    except (Refused, pytest.skip.Exception, Exception):
        # Crashes and refusals are reported by the law itself.
        return None
    return None


MEMORY = (
    "test_a_compressed_cache_takes_less_memory_than_an_uncompressed_one",
    "test_reported_memory_is_what_is_kept_alive",
)
"""Laws that a subject that does nothing may break, too."""


def require_acts(subject: Any) -> None:
    """Skip a law that holds for a vacuous subject, of which nothing holds."""
    if any(isinstance(_finding(name, subject), Vacuous) for name in FIRST):
        not_applicable("the subject does nothing")


def require_first(law: str, subject: Any) -> None:
    """Skip a law if one that comes first is broken: one cause, one finding.

    Nothing holds for a vacuous subject, but it may take more memory than none, see ``require_acts``.

    Args:
        law: name of its test.
        subject: the subject, a ``Subject``.
    """
    findings = {name: _finding(name, subject) for name in FIRST}
    if law == next(iter(FIRST)) and findings[law] is None and any(isinstance(f, Vacuous) for f in findings.values()):
        not_applicable("the subject runs, and does nothing")
    for name, finding in findings.items():
        if law == name:
            return
        if finding and not (isinstance(finding, Vacuous) and law in MEMORY):
            words = name.removeprefix("test_").replace("_", " ")
            not_applicable(f"the law that comes first is broken: {words}")
