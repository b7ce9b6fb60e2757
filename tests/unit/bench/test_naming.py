"""Presses by name: with options, variants beside each other, and presses of one's own."""

from pathlib import Path
from typing import Any

import pytest

from pressgauge import KnormPress, RandomPress, SnapKVPress
from pressgauge.bench.naming import Named, make, parse, with_random

OWN = """
from pressgauge import KnormPress


class Wide(KnormPress):
    pass


def factory(keep_ratio, widest=3, **options):
    return KnormPress(keep_ratio, recent=widest, **options)


def nothing(keep_ratio, **options):
    return None
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module in the working directory."""
    (tmp_path / "own_presses.py").write_text(OWN)
    (tmp_path / "failing_presses.py").write_text("1 / 0")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("knorm", [Named("knorm")]),
        (" knorm , random ", [Named("knorm"), Named("random")]),
        ("knorm,knorm", [Named("knorm")]),
        ("snapkv(recent=32)", [Named("snapkv", {"recent": 32})]),
        ("h2o(recent_share=0.25, sinks = 2),tova", [Named("h2o", {"recent_share": 0.25, "sinks": 2}), Named("tova")]),
        ("knorm,knorm(recent=8)", [Named("knorm"), Named("knorm", {"recent": 8})]),
        ("knorm(schedule=step)", [Named("knorm", {"schedule": "step"})]),
        ("my.module:Press(size=(),)", None),
        ("my.module:Press()", [Named("my.module:Press")]),
    ],
)
def test_names_are_separated_by_commas_outside_of_parentheses(text: str, found: list[Named] | None) -> None:
    """A name may carry options, and repetitions are left out."""
    if found is None:
        with pytest.raises(ValueError, match="--press must be names with commas"):
            parse(text)
    else:
        assert list(parse(text)) == found


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "--press must be names with commas between them"),
        (",", "--press must be names with commas between them"),
        ("knorm,", "--press must be names with commas between them"),
        ("knorm(", "--press must be names with commas between them"),
        ("knorm)", "--press must be names with commas between them"),
        ("knorm random", "--press must be names with commas between them"),
        ("knrm", "press must be one of knorm, streaming-llm, .*, got 'knrm'"),
        ("knorm(recent)", "options of a press must be name=value, such as recent=32, got 'recent'"),
        ("knorm(=3)", "options of a press must be name=value"),
        ("knorm(recent=)", "options of a press must be name=value"),
        ("knorm,tova(recent=2, keep_ratio=0.3)", "ratios are given by --keep-ratios, got keep_ratio in 'tova"),
    ],
)
def test_bad_names_are_refused(text: str, sentence: str) -> None:
    """A name that is not understood is refused by a sentence, without importing anything."""
    with pytest.raises(ValueError, match=sentence):
        parse(text)


def test_a_label_shows_the_options() -> None:
    """The label in tables has the options, those of the command line first, and can be parsed again."""
    (one,) = parse("snapkv(recent=32)")
    given = one.given(sinks=2, recent=4, interval=None)
    assert given.label == "snapkv(sinks=2, recent=32)"
    assert parse(given.label) == (given,)


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("knorm", KnormPress(0.5, prune_after=9)),
        ("snapkv(recent=32, kernel=3)", SnapKVPress(0.5, prune_after=9, recent=32, kernel=3)),
        ("random(seed=7, prune_after=4)", RandomPress(0.5, prune_after=4, seed=7)),
        ("own_presses:factory", KnormPress(0.5, prune_after=9, recent=3)),
        ("own_presses:factory(widest=5)", KnormPress(0.5, prune_after=9, recent=5)),
    ],
)
def test_a_press_is_made_with_its_options(text: str, expected: Any) -> None:
    """A press takes the options of its name, which override those of all presses, at each ratio."""
    (one,) = parse(text)
    assert make(one, [0.5], {"prune_after": 9}) == (expected,)
    assert [press.keep_ratio for press in make(one, [1.0, 0.25], {})] == [1.0, 0.25]


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("knorm(depth=3)", "knorm does not take depth=3: it takes prune_after, skip_layers, sinks"),
        ("own_presses:Narrow", "own_presses:Narrow was not found: AttributeError"),
        ("missing_presses:Press", "missing_presses:Press was not found: ModuleNotFoundError"),
        ("failing_presses:Press", "failing_presses:Press was not found: ZeroDivisionError"),
        ("own_presses:", "must be package.module:name, got 'own_presses:'"),
        (
            "own_presses:nothing",
            "own_presses:nothing cannot be measured: the factory returned a NoneType: it has to",
        ),
        ("knorm(recent=-1)", "recent must be at least 0, got -1"),
    ],
)
def test_what_cannot_be_made_is_refused(text: str, sentence: str) -> None:
    """A press that is not found, fails or takes other options is refused by a sentence."""
    (one,) = parse(text)
    with pytest.raises(ValueError, match=sentence):
        make(one, [0.5], {})


def test_random_stands_beside_every_press_with_the_same_budget() -> None:
    """A random press is added under each schedule, prune_after and layers of a press, unless one is there."""
    ratios = [1.0, 0.5]
    options: dict[str, Any] = {"prune_after": 16, "skip_layers": (0,)}

    def added(text: str, **shared: Any) -> dict[str, Any]:
        named = parse(text)
        given = {one.label: make(one, ratios, options | shared) for one in named}
        found = with_random(given, ratios, options | shared, seed=None)
        assert list(found)[: len(given)] == list(given)
        return {label: presses for label, presses in found.items() if label not in given}

    assert added("random") == {}
    assert added("random(seed=3),knorm") == {}
    both = added("knorm,snapkv,snapkv(recent=8),knorm(prune_after=4)")
    assert list(both) == ["random", "random(schedule=prefill)", "random(prune_after=4)"]
    assert both["random"] == (RandomPress(1.0, **options), RandomPress(0.5, **options))
    assert both["random(schedule=prefill)"][1] == RandomPress(0.5, schedule="prefill", **options)
    assert both["random(prune_after=4)"][1] == RandomPress(0.5, prune_after=4, skip_layers=(0,))
    assert list(added("knorm,snapkv", schedule="step")) == ["random"]


def test_random_has_the_options_of_all_presses() -> None:
    """Shared options and the seed are those of the added press, too."""
    found = with_random({"knorm": make(Named("knorm"), [0.5], {})}, [0.5], {}, recent=4, seed=7, sinks=None)
    assert found["random(recent=4, seed=7)"] == (RandomPress(0.5, recent=4, seed=7),)
