"""The summary of a run with ``--subject``: law by law, with the model, with crashes told from findings, and with what
the subject refused."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from _pytest._code.code import ReprFileLocation
from torch import Tensor

from conformance import test_counts
from harness.mutants.compressors import BeforehandLayer, cached, with_layers
from harness.mutants.plain import Plain, plain
from pressgauge.cache import PressedLayer
from pressgauge.conformance import architectures, session
from pressgauge.conformance.checks import check_attention, check_counts
from pressgauge.conformance.plugin import IDLENESS, REFUSED, Laws, _require_a_compressor
from pressgauge.conformance.session import Departure, run
from pressgauge.conformance.subjects import Subject, subject_of
from pressgauge.conformance.versions import CACHE, CACHE_NAMES


def reported(name: str, case: str = "", message: str = "", refused: tuple[str, ...] = ()) -> pytest.TestReport:
    """What pytest tells of a law for one case of the subject ``mine:factory``; a message for one that failed."""
    place = f"{name}[mine:factory{case}]"
    crash: Any = None
    if message:
        crash = type("Longrepr", (), {"reprcrash": ReprFileLocation("somewhere.py", 1, message)})()
    return pytest.TestReport(
        nodeid=place,
        location=("tests/conformance/test_it.py", 1, place),
        keywords={},
        outcome="failed" if message else "passed",
        longrepr=crash,
        when="call",
        user_properties=[(REFUSED, list(refused))],
    )


def summary(*reports: pytest.TestReport) -> list[str]:
    """The lines."""
    lines: list[str] = []
    terminal: Any = type(
        "Terminal",
        (),
        {
            "section": lambda self, title: None,
            "write_line": lambda self, line, **colours: lines.append(" ".join(line.split())),
        },
    )()
    laws = Laws()
    for report in reports:
        laws.pytest_runtest_logreport(report)
    laws.pytest_terminal_summary(terminal)
    return lines


def test_a_finding_says_of_which_models_it_is() -> None:
    """Of one law one line for each finding, with all models that show it; none where there is but one."""
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


def test_a_crash_is_not_taken_for_a_finding() -> None:
    """An exception of the subject or of torch is called so; a failed assertion is a finding."""
    assert summary(reported("test_a_law", "", "RuntimeError: sizes do not match"))[1] == (
        "it crashes: RuntimeError: sizes do not match"
    )
    assert summary(reported("test_a_law", "", "AssertionError: no number"))[1] == "AssertionError: no number"


def test_what_was_refused_stands_under_what_held() -> None:
    """Once, in the subject's own words: else nobody would know that these cases were not looked at."""
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
    """Evicts before attention has run, once the prompt is through."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        kind = BeforehandLayer if key_states.shape[2] == 1 else PressedLayer
        return kind.update(self, key_states, value_states, *args, **kwargs)


def test_who_evicts_before_attending_is_told_so() -> None:
    """The finding names the bug where the logits are those of attention to what is left."""
    model = architectures.shared("llama")
    ids = architectures.text(model, 1, 20)
    trace = run(cached(with_layers(EagerLayer)), model, ids, [11] + [1] * 9, keep_ratio=0.5, prune_after=4, recent=1)
    with pytest.raises(Departure, match="attention to the entries held after the pass, so it evicts before attention"):
        check_attention(trace)


class Unseeing:
    """A context manager whose hooks read the cache under a name that no model uses, or that has none at all."""

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
    """Such a subject."""
    return subject_of("mine:factory", lambda **options: Unseeing(hooks), {"kind": "context"})


@pytest.mark.parametrize(
    ("hooks", "finding"),
    [
        (True, f"the compressor never received a cache: KeyError: '{OTHER_NAME}'; in transformers .* as '{CACHE}'"),
        (False, "nothing was evicted from 40 tokens"),
    ],
)
def test_a_compressor_that_never_sees_a_cache_has_one_finding(hooks: bool, finding: str) -> None:
    """The law that says so is broken, and all others are not applicable for that reason."""
    subject = unseeing(hooks)
    with pytest.raises(Departure, match=finding):
        test_counts.test_something_is_evicted(subject)
    _require_a_compressor(IDLENESS, subject)
    with pytest.raises(pytest.skip.Exception, match=f"the subject does not act: {finding}"):
        _require_a_compressor("test_another", subject)
    _require_a_compressor("test_another", cached(with_layers(PressedLayer)))


def test_a_cache_that_a_model_ignores_is_the_first_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    """As under a release that takes it by another name."""
    monkeypatch.setattr(session, "using", lambda cache: {})
    subject = cached(with_layers(PressedLayer))
    with pytest.raises(Departure, match="was fed 36 tokens and never called update on the cache passed as"):
        test_counts.test_something_is_evicted(subject)


@pytest.mark.parametrize(
    ("layer", "options", "rule"),
    [
        (0, {"prune_after": 4}, "step with keep_ratio 0.5 and prune_after 4 retains 3"),
        (1, {"prune_after": 4, "skip_layers": (1,)}, "a layer in skip_layers retains 6"),
    ],
)
def test_a_wrong_count_names_its_rule(layer: int, options: dict[str, Any], rule: str) -> None:
    """The schedule, or that the layer is to be skipped."""

    class OneTooFew(Plain):
        """Evicts one entry too many from one layer."""

        def layer(self, index: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
            keys, values = super().layer(index, keys, values)
            return (keys[:, :, 1:].clone(), values[:, :, 1:].clone()) if index == layer else (keys, values)

    subject, model = plain(OneTooFew), architectures.shared("llama")
    trace = run(subject, model, architectures.text(model, 1, 6), [6], keep_ratio=0.5, **options)
    with pytest.raises(Departure, match=rf"^layer {layer} holds . entries after pass 0 \(6 tokens seen\); {rule}$"):
        check_counts(subject, trace)
