"""Factories take what they name, declare by option, and are varied in their options."""

import functools
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from pressgauge import KnormPress
from pressgauge.conformance import architectures
from pressgauge.conformance.outcomes import Refused
from pressgauge.conformance.session import run
from pressgauge.conformance.subjects import subject_of, subjects_of, varied
from pressgauge.conventions.factories import named_by
from support.laws import judged_by_all

TAKEN: dict[str, Any] = {}
"""What a factory was last passed."""


@pytest.fixture(autouse=True)
def nothing_taken() -> None:
    """Every test starts with nothing passed."""
    TAKEN.clear()


def narrow(keep_ratio: float, dtype: Any, prompt_length: int, model: Any, **options: Any) -> Any:
    TAKEN.update(dtype=dtype, prompt_length=prompt_length, model=model)
    return KnormPress(keep_ratio, **options)


class Class:
    def __init__(self, keep_ratio: float, device: Any, **options: Any) -> None:
        TAKEN.update(device=device)
        self.press = KnormPress(keep_ratio, **options)

    def cache(self, config: Any) -> Any:
        return self.press.cache(config)


def test_a_factory_gets_what_it_names() -> None:
    """``model``, ``dtype``, ``device`` and ``prompt_length`` are those of the run, for functions, classes, partials."""
    model = architectures.under_test("llama", torch.float32)
    ids = architectures.text(model, 1, 9)
    run(subject_of("narrow", narrow), model, ids, [7, 1, 1])
    assert {"dtype": torch.float32, "prompt_length": 7, "model": model} == TAKEN
    TAKEN.clear()
    run(subject_of("partial", functools.partial(narrow, dtype="auto")), model, ids, [5, 4])
    assert {"dtype": "auto", "prompt_length": 5, "model": model} == TAKEN
    TAKEN.clear()
    run(subject_of("class", Class), model, ids, [9])
    assert {"device": model.device} == TAKEN


def test_named_parameters_are_found() -> None:
    """Names are those of the signature, without what a partial has fixed and without ``**options``."""
    assert named_by(narrow) == {"keep_ratio", "dtype", "prompt_length", "model", "options"}
    assert named_by(functools.partial(narrow, model=3)) == named_by(narrow) - {"model"}
    assert named_by(Class) == {"keep_ratio", "device", "options"}
    assert named_by(dict) == set()


def test_what_a_factory_declines_is_a_refusal() -> None:
    """A factory's own ValueError is a refusal of the run, and its kind is found at a ratio that it takes."""

    def only_one(keep_ratio: float, **options: Any) -> Any:
        if keep_ratio < 1:
            raise ValueError("only a ratio of 1")
        return KnormPress(keep_ratio)

    subject = subject_of("only one", only_one)
    model = architectures.shared("llama")
    run(subject, model, architectures.text(model, 1, 4), [4])
    with pytest.raises(Refused, match="ValueError: only a ratio of 1"):
        run(subject, model, architectures.text(model, 1, 4), [4], keep_ratio=0.5)


def test_options_are_varied_one_at_a_time() -> None:
    """There is one subject for the first values and for each further value, named and declared by its options."""

    def factory(keep_ratio: float, bits: int, axis: str, **options: Any) -> Any:
        press = KnormPress(keep_ratio)
        TAKEN.update(bits=bits, axis=axis)
        return press

    factory.options = {"bits": [2, 4, 8], "axis": ("token", "channel")}  # type: ignore[attr-defined]
    factory.declares = lambda bits, axis: {"sinks": bits}  # type: ignore[attr-defined]
    subjects = subjects_of("mine:factory", factory)
    assert [subject.name for subject in subjects] == [
        "mine:factory(bits=2, axis=token)",
        "mine:factory(bits=4, axis=token)",
        "mine:factory(bits=8, axis=token)",
        "mine:factory(bits=2, axis=channel)",
    ]
    assert [subject.declares.sinks for subject in subjects] == [2, 4, 8, 2]
    subjects[2](0.5)
    assert TAKEN["bits"] == 8
    assert [subject.name for subject in subjects_of("mine:narrow", narrow)] == ["mine:narrow"]


@pytest.mark.parametrize("options", [{"bits": 4}, {"bits": []}, ["bits"]])
def test_invalid_options_are_refused(options: Any) -> None:
    """Options that map to no list of values are refused."""
    with pytest.raises(ValueError, match="options must map each option of the factory to a list of its values, got"):
        varied(options)


def test_a_subject_that_refuses_everything_breaks_no_law() -> None:
    """If every case is refused, also every drawn one, no law is broken and none holds."""

    class Refusing:
        def __init__(self, keep_ratio: float, **options: Any) -> None:
            pass

        def cache(self, config: Any) -> Any:
            raise NotImplementedError("not this model")

    subject = subject_of("refusing", Refusing, {"score": "knorm"})
    outcomes = judged_by_all(subject)
    assert {what for what, _ in outcomes.values()} == {"not applicable"}
    drawn = outcomes["every layer retains the number its schedule sets"][1]
    assert drawn == ("the subject refuses: NotImplementedError: not this model (in every drawn case, or nearly every)")


def test_a_factory_of_quantised_caches_needs_no_options_of_evictions() -> None:
    """A cache that only quantises is made without ratio, threshold and skipped layers, and is held to evict nothing;
    what its factory names it gets."""
    made: list[dict[str, Any]] = []

    class Maker:
        def cache(self, config: Any) -> DynamicCache:
            return DynamicCache(config=config)

    def factory(bits: int = 4) -> Maker:
        made.append({"bits": bits})
        return Maker()

    def evicting(keep_ratio: float, bits: int = 4) -> Maker:
        made.append({"keep_ratio": keep_ratio})
        return Maker()

    subject = subject_of("mine", factory, {"entries": "quantised"}, bits=2)
    subject(0.5, prune_after=8, skip_layers=(1,))
    assert made[-1] == {"bits": 2}
    assert subject.declares.target is not None
    assert (subject.declares.target(9, 8), subject.declares.prune_after, subject.declares.skip_layers) == (
        8,
        False,
        False,
    )
    subject = subject_of("mine", evicting, {"entries": "quantised"})
    subject(0.5, prune_after=8, skip_layers=(1,))
    assert made[-1] == {"keep_ratio": 0.5}
    assert subject.declares.target is None
    with pytest.raises(ValueError, match="has to take keep_ratio"):
        subject_of("mine", evicting, {})
