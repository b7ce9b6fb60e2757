"""The summary of a run with ``--subject``: outcomes by law, with models, crashes and refusals."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from _pytest._code.code import ReprFileLocation
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from conformance import test_bytes, test_smoke
from harness.mutants.compressors import BeforehandLayer, cached, with_layers
from harness.mutants.plain import Plain, plain
from harness.mutants.right_quantised import quantised
from harness.mutants.ways_in import GENERATING
from pressgauge.cache import PressedLayer
from pressgauge.conformance import architectures, session
from pressgauge.conformance.checks import check_attention, check_counts
from pressgauge.conformance.known import Known
from pressgauge.conformance.outcomes import Departure, Vacuous
from pressgauge.conformance.session import run
from pressgauge.conformance.smoke import concerns, require_first
from pressgauge.conformance.subjects import Subject, subject_of
from pressgauge.conformance.summary import KNOWN, NOTED, REFUSED, Laws
from pressgauge.conformance.versions import CACHE, CACHE_NAMES
from support.laws import judged_by_all, words


def reported(
    name: str,
    case: str = "",
    message: str = "",
    skipped: str = "",
    refused: tuple[str, ...] = (),
    noted: tuple[str, ...] = (),
) -> pytest.TestReport:
    """pytest's report of a law for one case of the subject ``mine:factory``: with a message if it failed, with a reason
    if it was skipped."""
    place = f"{name}[mine:factory{case}]"
    crash: Any = None
    if message:
        crash = type("Longrepr", (), {"reprcrash": ReprFileLocation("somewhere.py", 1, message)})()
    return pytest.TestReport(
        nodeid=place,
        location=("tests/conformance/test_it.py", 1, place),
        keywords={},
        outcome="failed" if message else "skipped" if skipped else "passed",
        longrepr=crash or (("test_it.py", 1, f"Skipped: not applicable: {skipped}") if skipped else None),
        when="call",
        user_properties=[(REFUSED, list(refused)), (NOTED, list(noted))],
    )


def summary(*reports: pytest.TestReport, known: tuple[Known, ...] = (), keyword: str = "") -> list[str]:
    """Lines of the summary."""
    lines: list[str] = []
    terminal: Any = type(
        "Terminal",
        (),
        {
            "section": lambda self, title: None,
            "write_line": lambda self, line, **colours: lines.append(" ".join(line.split())),
        },
    )()
    laws = collected(*reports, known=known)
    laws.pytest_terminal_summary(terminal, config(keyword))
    return lines


def collected(*reports: pytest.TestReport, known: tuple[Known, ...] = ()) -> Laws:
    """The collector after these reports."""
    laws = Laws(["subject: mine:factory"], list(known))
    for report in reports:
        laws.pytest_runtest_logreport(report)
    return laws


def config(keyword: str = "") -> Any:
    """A configuration of pytest with ``-k``."""
    return SimpleNamespace(getoption=lambda name: keyword if name == "keyword" else "")


def test_a_finding_lists_its_models() -> None:
    """Each finding of a law has one line, with its models if there are several."""
    same = "pressgauge.conformance.session.Departure: layer 1 is out of order"
    assert summary(
        reported("test_a_law", "-llama", same),
        reported("test_a_law", "-neox", same),
        reported("test_a_law", "-qwen3"),
        reported("test_another", "", "pressgauge.conformance.session.Departure: too many"),
    ) == [
        "broken a law",
        "layer 1 is out of order (llama, neox)",
        "broken another",
        "too many",
        "2 laws broken, 0 held, 0 not applicable",
    ]


def test_a_finding_lists_its_options() -> None:
    """If options are varied, each finding lists the options and models for which it was made."""
    same = "pressgauge.conformance.session.Departure: layer 1 is out of order"
    assert (
        summary(
            reported("test_a_law", "(bits=2, axis=per-token)-llama", same),
            reported("test_a_law", "(bits=4, axis=per-token)", same),
        )[1]
        == "layer 1 is out of order (bits=2, axis=per-token, llama, bits=4, axis=per-token)"
    )


def test_notes_are_listed_below_their_law() -> None:
    """An observation is listed once, below its law, whether the law holds or not."""
    assert summary(
        reported("test_a_law", "-llama", noted=("the peak is 3 MB",)),
        reported("test_a_law", "-neox", noted=("the peak is 3 MB",)),
        reported("test_another", "", "pressgauge.conformance.session.Departure: too many", noted=("by rounding",)),
    )[:5] == ["broken another", "too many", "note: by rounding", "held a law", "note: the peak is 3 MB"]


ROWS = Known("rows are independent", "row * has other logits", "one scale for all")
"""A known finding."""


def as_known(name: str, finding: str, case: str = "") -> pytest.TestReport:
    """Report of a law whose finding is known."""
    report = reported(name, case, skipped="known")
    report.user_properties.append((KNOWN, [finding, ROWS.reason]))
    return report


def test_a_known_finding_is_shown_as_known() -> None:
    """A known finding is listed with its reason, is not broken, and another finding of its law is."""
    known = as_known("test_rows_are_independent", "row 1 has other logits", "-llama")
    assert summary(known, known=(ROWS,)) == [
        "known rows are independent",
        "row 1 has other logits (llama) (known: one scale for all)",
        "0 laws broken, 1 known, 0 held, 0 not applicable",
    ]
    other = reported("test_rows_are_independent", "-neox", "pressgauge.conformance.outcomes.Departure: a crash")
    assert summary(known, other, known=(ROWS,))[:3] == [
        "broken rows are independent",
        "a crash (neox)",
        "row 1 has other logits (llama) (known: one scale for all)",
    ]


def test_an_entry_that_matches_nothing_is_named() -> None:
    """A known finding that was not made is named, unless its law was left out by ``-k``."""
    sentence = "not found a known finding: rows are independent: row * has other logits"
    assert summary(reported("test_a_law"), known=(ROWS,))[0] == sentence
    assert summary(reported("test_rows_are_independent"), known=(ROWS,), keyword="rows")[0] == sentence
    assert summary(reported("test_a_law"), known=(ROWS,), keyword="a_law")[0] == "held a law"


def test_the_summary_is_written_as_json_and_markdown() -> None:
    """Both files list every law with its outcome and findings."""
    laws = collected(
        reported("test_a_law", "-llama", "pressgauge.conformance.session.Departure: too | many"),
        as_known("test_rows_are_independent", "row 1 has other logits"),
        reported("test_another", noted=("the peak is 3 MB",)),
        reported("test_idle", skipped="nothing to see"),
        known=(ROWS, Known("another", "*", "old")),
    )
    whole = json.loads(laws.as_json(config()))
    assert whole["counts"] == {"broken": 1, "known": 1, "held": 1, "not applicable": 1}
    assert [(law["law"], law["outcome"]) for law in whole["laws"]] == [
        ("a law", "broken"),
        ("rows are independent", "known"),
        ("another", "held"),
        ("idle", "not applicable"),
    ]
    assert whole["laws"][0]["findings"] == [{"finding": "too | many", "cases": ["llama"]}]
    assert whole["laws"][1]["known"][0]["reason"] == "one scale for all"
    assert whole["laws"][2]["notes"] == ["the peak is 3 MB"]
    assert whole["laws"][3]["reasons"] == ["nothing to see"]
    assert whole["known findings that were not made"] == [{"law": "another", "pattern": "*", "reason": "old"}]
    lines = laws.as_markdown().splitlines()
    assert lines[0].startswith("subject: mine:factory; pressgauge ")
    assert lines[1] == "1 laws broken, 1 known, 1 held, 1 not applicable"
    assert lines[3:] == [
        "| law | outcome | finding |",
        "| --- | --- | --- |",
        "| a law | broken | too \\| many (llama) |",
        "| rows are independent | known | row 1 has other logits (known: one scale for all) |",
        "| another | held |  |",
        "| idle | not applicable | nothing to see |",
    ]


def test_crashes_differ_from_findings() -> None:
    """Exceptions are reported as crashes, and failed assertions as findings."""
    assert summary(reported("test_a_law", "", "RuntimeError: sizes do not match"))[1] == (
        "it crashes: RuntimeError: sizes do not match"
    )
    assert summary(reported("test_a_law", "", "AssertionError: no number"))[1] == "AssertionError: no number"


def test_refused_cases_are_listed_under_laws_that_hold() -> None:
    """Cases that the subject refused are listed once, with its message, under laws that hold."""
    sentence = "ValueError: chunks are beyond me"
    assert summary(
        reported("test_a_law", "-llama", refused=(sentence, sentence)),
        reported("test_a_law", "-neox", refused=(sentence,)),
    ) == [
        "held a law",
        f"but for cases that the subject refuses: {sentence}",
        "0 laws broken, 1 held, 0 not applicable",
    ]


class EagerLayer(BeforehandLayer):
    """Evicts before attention, after the prompt."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        kind = BeforehandLayer if key_states.shape[2] == 1 else PressedLayer
        return kind.update(self, key_states, value_states, *args, **kwargs)


def test_eviction_before_attention_is_diagnosed() -> None:
    """The finding names eviction before attention if the logits are those of attention to the entries left."""
    model = architectures.shared("llama")
    ids = architectures.text(model, 1, 20)
    trace = run(cached(with_layers(EagerLayer)), model, ids, [11] + [1] * 9, keep_ratio=0.5, prune_after=4, recent=1)
    with pytest.raises(Departure, match="attention to the entries held after the pass, so it evicts before attention"):
        check_attention(trace)


class Unseeing:
    """A context manager whose hooks read the cache under an unknown name, or not at all."""

    def __init__(self, hooks: bool) -> None:
        self.hooks = hooks

    @contextmanager
    def __call__(self, model: Any) -> Iterator[None]:
        def hook(module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
            kwargs[OTHER_NAME].update()

        attention = model.model.layers[0].self_attn
        handle = attention.register_forward_hook(hook, with_kwargs=True) if self.hooks else None
        try:
            yield
        finally:
            if handle is not None:
                handle.remove()


OTHER_NAME = next(name for name in CACHE_NAMES if name != CACHE)


def unseeing(hooks: bool) -> Subject:
    """Subject of ``Unseeing``."""
    return subject_of("mine:factory", lambda **options: Unseeing(hooks), {"kind": "context"})


RUNS, ACTS = "test_it_runs_and_its_cache_can_be_read", "test_something_is_evicted_or_altered"


def test_a_compressor_that_never_receives_a_cache_has_one_finding() -> None:
    """A compressor that never receives a cache does not run: one law is broken, and no other is applicable."""
    subject = unseeing(hooks=True)
    finding = f"the compressor never received a cache: KeyError: '{OTHER_NAME}'; in transformers .* as '{CACHE}'"
    with pytest.raises(Departure, match=finding):
        test_smoke.test_it_runs_and_its_cache_can_be_read(subject)
    require_first(RUNS, subject)
    for later in (ACTS, "test_another"):
        with pytest.raises(pytest.skip.Exception, match="comes first is broken: it runs and its cache can be read"):
            require_first(later, subject)


def test_a_compressor_that_does_nothing_has_one_finding() -> None:
    """A compressor that does nothing runs and is vacuous, and no later law is applicable."""
    subject = unseeing(hooks=False)
    test_smoke.test_it_runs_and_its_cache_can_be_read(subject)
    with pytest.raises(Vacuous, match=r"nothing was evicted from 40 tokens .* declared are evictions$"):
        test_smoke.test_something_is_evicted_or_altered(subject)
    require_first(ACTS, subject)
    with pytest.raises(pytest.skip.Exception, match="the subject runs, and does nothing"):
        require_first(RUNS, subject)
    with pytest.raises(pytest.skip.Exception, match="comes first is broken: something is evicted or altered"):
        require_first("test_another", subject)
    outcomes = {name: what for name, (what, _) in judged_by_all(subject).items() if what != "not applicable"}
    assert outcomes == {words(test_smoke.test_something_is_evicted_or_altered): "broken"}


def test_laws_with_the_same_reason_share_it() -> None:
    """Laws that are not applicable for the same reason are listed together, with the reason once."""
    reports = [reported(f"test_{name}", skipped=reason) for name, reason in (("a", "no"), ("b", ""), ("c", "no"))]
    assert summary(*reports)[-4:-1] == ["not applicable a", "not applicable c", "no"]


def test_laws_that_meet_the_same_crash_are_folded() -> None:
    """Laws that find nothing but the same crash, whatever its numbers and its place, are not applicable but for the
    first, which says how many there are; another crash, and a law that finds more, stay broken."""
    crash, departure = "RuntimeError: size {} and {}", "pressgauge.conformance.session.Departure: "
    reports = [
        reported("test_a", "-llama", crash.format(3, 4)),
        reported("test_a", "-neox", crash.format(5, 14)),
        reported("test_b", "", f"{departure}a reset crashes: {crash.format(7, 8)}"),
        reported("test_c", "", "IndexError: size 3 and 4"),
        reported("test_d", "-llama", crash.format(3, 4)),
        reported("test_d", "-neox", f"{departure}too many"),
        reported("test_e", "-llama", crash.format(1, 2)),
        reported("test_e", "-neox"),
    ]
    lines = summary(*reports)
    assert lines[:4] == [
        "broken a",
        "it crashes: RuntimeError: size 3 and 4 (llama)",
        "it crashes: RuntimeError: size 5 and 14 (neox)",
        "the same crash stops 2 more laws",
    ]
    assert [line for line in lines if line.startswith("broken")] == ["broken a", "broken c", "broken d"]
    assert lines[-4:] == [
        "not applicable b",
        "not applicable e",
        "the same crash as in: a",
        "3 laws broken, 0 held, 2 not applicable",
    ]
    laws = json.loads(collected(*reports).as_json(config()))["laws"]
    assert [(law["law"], law["findings"], law["reasons"]) for law in laws if law["outcome"] == "not applicable"] == [
        ("b", [], ["the same crash as in: a"]),
        ("e", [], ["the same crash as in: a"]),
    ]


def test_a_crash_beyond_a_window_comes_first() -> None:
    """A crash of a cache with a window of 128 tokens, which short texts do not reach, is the first finding."""

    class Windowed(Plain):
        """Crashes beyond 128 tokens."""

        def layer(self, index: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
            if keys.shape[2] > 128:
                raise IndexError("a bug beyond the window")
            return super().layer(index, keys, values)

    subject = plain(Windowed)
    with pytest.raises(Departure, match=r"passes of \[124, .*: IndexError: a bug beyond the window"):
        test_smoke.test_it_runs_and_its_cache_can_be_read(subject)
    with pytest.raises(pytest.skip.Exception, match="comes first is broken: it runs and its cache can be read"):
        require_first("test_another", subject)


def test_the_memory_of_a_vacuous_subject_is_weighed() -> None:
    """A cache that quantises a copy which is never read, beside the originals, is vacuous and takes more memory than
    none; its other laws are not applicable."""

    class Copies(DynamicLayer):
        copy: Any = None

        def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
            keys, values = super().update(key_states, value_states, *args, **kwargs)
            self.copy = (keys * 8).round().to(torch.int8), (values * 8).round().to(torch.int8)
            return keys, values

    subject = quantised("copies", Copies, bits=8)
    outcomes = {name: what for name, (what, _) in judged_by_all(subject).items() if what != "not applicable"}
    assert outcomes == {
        words(test_smoke.test_something_is_evicted_or_altered): "broken",
        words(test_bytes.test_a_compressed_cache_takes_less_memory_than_an_uncompressed_one): "broken",
    }


def test_a_vacuous_subject_is_named_in_the_first_line() -> None:
    """The summary begins with the finding that a subject does nothing, with the options for which it was made."""
    lines = summary(
        reported(ACTS, "(bits=8)", "pressgauge.conformance.outcomes.Vacuous: nothing was evicted"),
        reported("test_a_law", "(bits=8)", "pressgauge.conformance.session.Departure: too many"),
    )
    assert lines[0] == "vacuous nothing was evicted (bits=8)"
    assert lines[-1] == "2 laws broken, 0 held, 0 not applicable"


def test_a_compressor_that_acts_has_no_obstacle() -> None:
    """No law is left out for a compressor that runs and evicts."""
    require_first("test_another", cached(with_layers(PressedLayer)))


def test_laws_of_other_kinds_are_left_out() -> None:
    """Laws for quantised entries, and for functions that generate, concern no other subjects; those that come first
    concern all."""
    evicting = cached(with_layers(PressedLayer))
    files = ("test_smoke", "test_counts", "test_quantised", "test_quantised_inputs", "test_generating")
    assert [concerns(file, evicting) for file in files] == [True, True, False, False, False]
    assert [concerns(file, GENERATING) for file in files] == [True, False, False, False, True]


def test_an_ignored_cache_is_the_first_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache ignored by the model is the first finding, as in a release with another argument name."""
    monkeypatch.setattr(session, "using", lambda cache: {})
    subject = cached(with_layers(PressedLayer))
    with pytest.raises(Departure, match="was fed 36 tokens and never called update on the cache passed as"):
        test_smoke.test_it_runs_and_its_cache_can_be_read(subject)


@pytest.mark.parametrize(
    ("layer", "options", "rule"),
    [
        (0, {"prune_after": 4}, "step with keep_ratio 0.5 and prune_after 4 retains 3"),
        (1, {"prune_after": 4, "skip_layers": (1,)}, "a layer in skip_layers retains 6"),
    ],
)
def test_a_wrong_count_names_its_rule(layer: int, options: dict[str, Any], rule: str) -> None:
    """A wrong count is reported with its schedule, or with ``skip_layers``."""

    class OneTooFew(Plain):
        """Evicts one entry too many from one layer."""

        def layer(self, index: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
            keys, values = super().layer(index, keys, values)
            return (keys[:, :, 1:].clone(), values[:, :, 1:].clone()) if index == layer else (keys, values)

    subject, model = plain(OneTooFew), architectures.shared("llama")
    trace = run(subject, model, architectures.text(model, 1, 6), [6], keep_ratio=0.5, **options)
    with pytest.raises(Departure, match=rf"^layer {layer} holds . entries after pass 0 \(6 tokens seen\); {rule}$"):
        check_counts(subject, trace)
