"""Conventions of subjects are recognised, and declarations are read or refused."""

import functools
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from transformers import DynamicCache

from conformance.ours import ours_by_default
from harness.mutants.ways_in import Generating, Makes, Patch, Restored, patching
from pressgauge import KnormPress
from pressgauge.conformance import oracle
from pressgauge.conformance.declares import Declares, read_declares
from pressgauge.conformance.subjects import find, subject_of
from pressgauge.conventions.adapters import PatchAdapter, adapter_of
from support.laws import LAWS, judged

PAGE = Path(__file__).parents[2] / "docs" / "conformance.md"


class Context:
    """A callable without a cache."""

    def __call__(self, model: Any) -> Any:
        raise NotImplementedError

    def compress(self, layers: Any) -> Any:
        """A method."""
        return layers


@contextmanager
def around(model: Any) -> Iterator[None]:
    yield


@pytest.mark.parametrize(
    ("compressor", "kind"),
    [
        (KnormPress(0.5), "cache"),
        (Context(), "context"),
        (Context().compress, "function"),
        (lambda layers: layers, "function"),
        (functools.partial(Context.compress, Context()), "function"),
        (around, "context"),
        (functools.partial(around), "context"),
        (DynamicCache(), "instance"),
        (lambda model: DynamicCache(config=model.config), "maker"),
        (Makes(0.5), "maker"),
        (Patch(0.5), "patch"),
        (patching(0.5), "patch"),
        (Restored(0.5), "patch"),
        (Generating(0.5).generate, "generate"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_the_are_recognised(compressor: object, kind: str) -> None:
    """The convention follows from the factory's result."""
    assert adapter_of(compressor).kind == kind


def test_a_declared_kind_overrides() -> None:
    """A declared kind is used whatever the factory returns."""
    declares = {"kind": "patch", "prune_after": None, "skip_layers": None}
    assert subject_of("declared", lambda keep_ratio: KnormPress(keep_ratio), declares).adapter is PatchAdapter


def test_unknown_conventions_are_refused() -> None:
    """An object of no known convention is refused, with the conventions in the message."""
    with pytest.raises(ValueError, match="the factory returned a int: it has to return a transformers cache"):
        adapter_of(3)


@pytest.mark.parametrize(
    ("declares", "sentence"),
    [
        ({"shedule": "step"}, "declares has no 'shedule': known are kind, schedule, "),
        (
            {"schedule": "always"},
            "declares schedule must be one of 'budget', 'step', 'prefill', 'decoding', got 'always'",
        ),
        ({"prune_after": 512}, "declares prune_after must be one of None, got 512"),
        ({"boundary": "<"}, "declares boundary must be one of '>', '>=', got '<'"),
        ({"rounding": "up"}, "declares rounding must be one of ceil, floor, float-ceil or a function, got 'up'"),
        (
            {"score": "snapkv"},
            "declares score 'snapkv' needs an observation window of at least one token: declare it as",
        ),
        (
            {"score": "snap"},
            "declares score must be one of knorm, position, keydiff, h2o, snapkv, tova or a function, got 'snap'",
        ),
        ({"takes": ["window"]}, "declares takes must name sinks, recent or interval, got 'window'"),
        (
            {"dtypes": ("half",)},
            "declares dtypes must be a tuple of float64, float32, float16, bfloat16, got ('half',)",
        ),
        (
            {"dtypes": "float16"},
            "declares dtypes must be a tuple of float64, float32, float16, bfloat16, got 'float16'",
        ),
        ({"takes": "sinks"}, "declares takes must be a tuple of names, got 'sinks'"),
        (
            {"score": lambda keys, layer, head: lambda position: keys[position][0]},
            "for three keys and the positions [0, 2] it raises TypeError: list indices must be integers",
        ),
        (
            {"score": lambda keys, layer, head: lambda positions: [keys[place] for place in positions]},
            "declares score must give a list of two numbers for the positions [0, 2], got [[1.0, 2.0], [0.0, 1.0]]",
        ),
        ({"target": lambda seen, held, ratio: held}, "for 9 and 8 it raises TypeError"),
        ({"target": lambda seen, held: seen / 2}, "target must give a whole number for 9 seen and 8 held, got 4.5"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_invalid_declarations_are_refused(declares: dict[str, Any], sentence: str) -> None:
    """An invalid declaration is refused, with the given and the allowed values."""
    with pytest.raises(ValueError, match=re.escape(sentence)):
        read_declares(declares, "cache")


def test_a_convention_has_its_schedule() -> None:
    """Each convention has a default schedule."""
    assert {kind: read_declares({}, kind).schedule for kind in ("cache", "context", "function")} == {
        "cache": "budget",
        "context": "prefill",
        "function": "step",
    }
    assert read_declares({"schedule": "step"}, "cache").schedule == "step"


def test_options_that_a_factory_does_not_take_are_left_out() -> None:
    """``prune_after`` and ``skip_layers`` declared as None are not passed to the factory."""

    def factory(keep_ratio: float) -> Any:
        return KnormPress(keep_ratio)

    factory.declares = {"prune_after": None, "skip_layers": None}  # type: ignore[attr-defined]
    subject = subject_of("narrow", factory)
    assert subject(0.5, prune_after=3, skip_layers=(1,)) == KnormPress(0.5)
    assert subject.rules({"keep_ratio": 0.5, "prune_after": 3}) == oracle.Rules(0.5, prune_after=0)


def test_missing_options_of_a_factory_are_refused() -> None:
    """A factory that lacks an option is refused, unless it declares so."""
    with pytest.raises(ValueError, match=r"or declare those that it does not take as None \(.*'skip_layers'"):
        subject_of("narrow", lambda keep_ratio, prune_after: KnormPress(keep_ratio, prune_after))


def test_the_corrected_example_of_the_page_breaks_no_law() -> None:
    """The example of the page breaks no law after its one bug is corrected; the score of the page is read too."""
    text = PAGE.read_text(encoding="utf-8")
    first, second = re.findall(r"^```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {}
    exec(first.replace("held <= 32", "held <= prune_after"), names)
    mended = subject_of("mended", names["my_factory"])
    assert {judged(law, mended)[0] for law in LAWS.values()} == {"held", "not applicable"}
    exec(second, names)
    assert subject_of("scored", names["my_factory"]).declares.nan == "any"


def test_a_factory_is_found_by_its_name() -> None:
    """A factory is imported by its name, with the version of its package."""
    (subject,) = find("pressgauge.presses.knorm:KnormPress")
    assert subject.declares.kind == "cache"
    assert re.fullmatch(r"pressgauge [\d.]+", subject.version)


@pytest.mark.parametrize(
    ("reference", "sentence"),
    [
        ("nowhere:factory", "--subject nowhere:factory was not found: No module named 'nowhere'"),
        (
            "pressgauge.presses.knorm:Nothing",
            "--subject pressgauge.presses.knorm:Nothing was not found: module ",
        ),
        ("pressgauge.presses.knorm", "--subject must be package.module:name, got 'pressgauge.presses.knorm'"),
        ("builtins:print", "--subject builtins:print cannot be used: "),
    ],
)
def test_a_missing_subject_gives_one_sentence(reference: str, sentence: str) -> None:
    """A subject that cannot be used gives one sentence and no traceback."""
    with pytest.raises(pytest.UsageError, match=re.escape(sentence)):
        find(reference)


def test_default_subjects_cover_presses_and_conventions() -> None:
    """The default subjects cover all presses and schedules, and each convention."""
    subjects = ours_by_default()
    names = {subject.name for subject in subjects}
    assert {
        f"{p}-{s}" for p in ("knorm", "streaming-llm", "random", "keydiff") for s in ("budget", "step", "prefill")
    } <= names
    assert {"h2o-budget", "snapkv-prefill", "tova-budget"} <= names
    assert {subject.declares.kind for subject in subjects} == {"cache", "context", "function"}
    assert len(names) == len(subjects)


def test_the_page_lists_all_declarations() -> None:
    """The page lists exactly the allowed declarations; ``votes`` is derived from the score."""
    table = PAGE.read_text(encoding="utf-8").split("## What a factory declares")[1].split("\n## ")[0]
    cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    named = {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}
    assert named == set(Declares.__dataclass_fields__) - {"votes"}
