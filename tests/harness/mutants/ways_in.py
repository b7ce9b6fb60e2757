"""Compressors in further conventions, a right and a broken one each: caches made by the factory or by a function of the
model, patches, functions made by contextlib, and functions that generate."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from conformance import test_counts, test_generating, test_leaks
from harness.mutants.mutant import Mutant
from harness.mutants.plain import Hooked, Plain
from harness.mutants.smoke import ACTS, OWN, RUNS, OwnStorage, read
from pressgauge.conformance.subjects import Subject, subject_of
from pressgauge.conformance.versions import using

FOR_HOOKS: dict[str, Any] = {"score": "knorm", "positions": "caller", "skip_layers": None, "padding": None}


def of_a_factory(name: str, factory: Callable[..., Any], **declares: Any) -> Subject:
    """Subject of a factory of ``OwnStorage``."""
    return subject_of(name, factory, {**OWN, "read": read, **declares})


# A cache that the factory returns


def instance(keep_ratio: float, model: Any, prune_after: int = 512) -> OwnStorage:
    """A cache for one sequence."""
    return OwnStorage(Plain(keep_ratio, prune_after), model.config.num_hidden_layers)


INSTANCE = of_a_factory("cache made by the factory", instance)

_MADE: dict[tuple[float, int], OwnStorage] = {}


def the_same(keep_ratio: float, model: Any, prune_after: int = 512) -> OwnStorage:
    """The same cache for the same options."""
    key = keep_ratio, prune_after
    return _MADE.setdefault(key, instance(keep_ratio, model, prune_after))


# A function of the model that makes a cache


def maker(keep_ratio: float, prune_after: int = 512) -> Callable[[Any], OwnStorage]:
    """A function that makes a cache for a model."""

    def make(model: Any) -> OwnStorage:
        return OwnStorage(Plain(keep_ratio, prune_after), model.config.num_hidden_layers)

    return make


class Makes:
    """An object that makes a cache for a model."""

    def __init__(self, keep_ratio: float, prune_after: int = 512) -> None:
        self.make = maker(keep_ratio, prune_after)

    def cache(self, model: Any) -> OwnStorage:
        return self.make(model)


class LastLayerKept(OwnStorage):
    """The last layer never evicts."""

    def evict(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        return (keys, values) if layer == max(self.layers) else super().evict(layer, keys, values)


def makes_too_few(keep_ratio: float, prune_after: int = 512) -> Callable[[Any], OwnStorage]:
    """A function that makes a cache whose last layer never evicts."""

    def make(model: Any) -> OwnStorage:
        return LastLayerKept(Plain(keep_ratio, prune_after), model.config.num_hidden_layers)

    return make


# A patch in place with an undo


class Handle:
    """The undo of a patch."""

    def __init__(self, handles: list[Any]) -> None:
        self.handles = handles

    def undo(self) -> None:
        for handle in self.handles:
            handle.remove()


def _hook(press: Hooked, model: Any) -> list[Any]:
    return [layer.self_attn.register_forward_hook(press.after, with_kwargs=True) for layer in model.model.layers]


class Patch(Hooked):
    """``obj.patch(model)`` returns its undo."""

    def patch(self, model: Any) -> Handle:
        return Handle(_hook(self, model))


class HalfUndone(Patch):
    """The undo removes all hooks but the last."""

    def patch(self, model: Any) -> Handle:
        return Handle(_hook(self, model)[:-1])


def patching(keep_ratio: float, prune_after: int = 512) -> Callable[[Any], Callable[[], None]]:
    """A function that patches a model and returns a function that undoes it."""
    press = Hooked(keep_ratio, prune_after)

    def apply(model: Any) -> Callable[[], None]:
        return Handle(_hook(press, model)).undo

    return apply


class Restored(Hooked):
    """A patch that returns nothing, and an object that restores the model."""

    def __call__(self, model: Any) -> Any:
        self.handles = _hook(self, model)

    def restore(self, model: Any) -> None:
        """Undo the patch."""
        for handle in self.handles:
            handle.remove()


# Functions made by contextlib.contextmanager


@contextmanager
def compressed(model: Any, press: Hooked) -> Iterator[None]:
    """Hook a press to a model."""
    handles = _hook(press, model)
    try:
        yield
    finally:
        Handle(handles).undo()


@contextmanager
def left_behind(model: Any, press: Hooked) -> Iterator[None]:
    """Hook a press to a model, until the end unless an exception is raised."""
    handles = _hook(press, model)
    yield
    Handle(handles).undo()


def context_of(function: Callable[..., Any]) -> Callable[..., Any]:
    """Factory of a function made by contextlib, with its press bound."""

    def factory(keep_ratio: float, prune_after: int = 512) -> Any:
        return functools.partial(function, press=Hooked(keep_ratio, prune_after))

    return factory


# Functions that generate


class Generating:
    """Greedy generation with an ``OwnStorage``."""

    def __init__(self, keep_ratio: float, prune_after: int = 512) -> None:
        self.press = Plain(keep_ratio, prune_after)

    def start(self, model: Any) -> OwnStorage:
        """A cache for a prompt."""
        return OwnStorage(self.press, model.config.num_hidden_layers)

    def generate(self, model: Any, input_ids: Tensor, max_new_tokens: int = 20) -> Tensor:
        """The prompt and its continuation."""
        cache, tokens, new = self.start(model), input_ids, input_ids
        for _ in range(max_new_tokens):
            new = self.choose(model(new, **using(cache)).logits[:, -1])
            tokens = torch.cat([tokens, new], dim=1)
        return tokens

    def choose(self, logits: Tensor) -> Tensor:
        """The next token of each row, ``[B, 1]``."""
        return logits.argmax(-1, keepdim=True)


class NeverWhole(Generating):
    """A ratio of 1 retains half."""

    def __init__(self, keep_ratio: float, prune_after: int = 512) -> None:
        super().__init__(min(keep_ratio, 0.5), prune_after)


class NewOnly(Generating):
    """Returns the new tokens only."""

    def generate(self, model: Any, input_ids: Tensor, max_new_tokens: int = 20) -> Tensor:
        return super().generate(model, input_ids, max_new_tokens)[:, input_ids.shape[1] :]


class OneMore(Generating):
    """A single new token is followed by a second."""

    def generate(self, model: Any, input_ids: Tensor, max_new_tokens: int = 20) -> Tensor:
        return super().generate(model, input_ids, max(2, max_new_tokens))


class Bounded(Generating):
    """A prompt beyond a budget of 64 entries finds no place."""

    def generate(self, model: Any, input_ids: Tensor, max_new_tokens: int = 20) -> Tensor:
        torch.zeros(64)[: input_ids.shape[1]] += torch.ones(input_ids.shape[1])
        return super().generate(model, input_ids, max_new_tokens)


class Together(Generating):
    """All rows are continued by the tokens of the first."""

    def choose(self, logits: Tensor) -> Tensor:
        return super().choose(logits)[:1].expand(logits.shape[0], 1)


class Continuing(Generating):
    """The cache of a prompt serves the next one as well."""

    kept: OwnStorage | None = None

    def start(self, model: Any) -> OwnStorage:
        self.kept = self.kept or super().start(model)
        return self.kept


class Attached(Generating):
    """Leaves an attribute on the model."""

    def generate(self, model: Any, input_ids: Tensor, max_new_tokens: int = 20) -> Tensor:
        model.compressed = True
        return super().generate(model, input_ids, max_new_tokens)


class Uncompressed(Generating):
    """Retains everything."""

    def __init__(self, keep_ratio: float, prune_after: int = 512) -> None:
        super().__init__(1.0, prune_after)


class Renamed(Generating):
    """Asks the cache for a method that does not exist."""

    def start(self, model: Any) -> OwnStorage:
        cache: Any = super().start(model)
        cache.prefill()
        return cache  # type: ignore[no-any-return]


def generating(kind: type[Generating] = Generating) -> Subject:
    """Subject of a function that generates."""
    return subject_of(
        kind.__name__, lambda **options: kind(**options).generate, {"skip_layers": None, "schedule": "step"}
    )


GENERATING = generating()
PATCH = subject_of("patch", Patch, FOR_HOOKS)
MAKER = of_a_factory("function of the model", maker)
CONTEXT = subject_of("contextlib", context_of(compressed), FOR_HOOKS)

RIGHT_WAYS_IN = [
    INSTANCE,
    MAKER,
    of_a_factory("object with cache(model)", Makes),
    PATCH,
    subject_of("patch by a function", patching, FOR_HOOKS),
    subject_of("patch with restore", Restored, FOR_HOOKS),
    CONTEXT,
    GENERATING,
]
"""Right compressors in these conventions."""

# fmt: off
WAYS_IN = [
    Mutant("way-instance", "the factory returns the cache of the first sequence again", "plausible",
           of_a_factory("the same cache", the_same), test_leaks.test_a_second_sequence_is_independent_of_the_first,
           INSTANCE),
    Mutant("way-maker", "the last layer of a cache made for a model never evicts", "plausible",
           of_a_factory("last layer kept", makes_too_few),
           test_counts.test_every_layer_retains_the_number_its_schedule_sets, MAKER),
    Mutant("way-patch", "the undo of a patch leaves a hook", "plausible",
           subject_of("HalfUndone", HalfUndone, FOR_HOOKS), test_leaks.test_the_model_is_left_unchanged, PATCH),
    Mutant("way-contextlib", "hooks are not removed after an exception", "kvpress PR 244",
           subject_of("left behind", context_of(left_behind), FOR_HOOKS),
           test_leaks.test_the_model_is_left_unchanged, CONTEXT),
    Mutant("generate-crash", "asks a cache for a method that does not exist", "plausible",
           generating(Renamed), RUNS, GENERATING, says=("has no attribute 'prefill'",)),
    Mutant("generate-vacuous", "compresses nothing", "plausible", generating(Uncompressed), ACTS, GENERATING),
    Mutant("generate-whole", "a ratio of 1 retains half", "plausible", generating(NeverWhole),
           test_generating.test_a_ratio_of_one_generates_the_tokens_of_the_plain_model, GENERATING),
    Mutant("generate-new", "returns the new tokens without the prompt", "plausible", generating(NewOnly),
           test_generating.test_the_prompt_comes_first_and_the_number_of_tokens_is_as_asked, GENERATING),
    Mutant("generate-more", "a single new token is followed by another", "plausible", generating(OneMore),
           test_generating.test_the_prompt_comes_first_and_the_number_of_tokens_is_as_asked, GENERATING),
    Mutant("generate-budget", "dies where the prompt exceeds the budget", "proactive-cache 0.3.1", generating(Bounded),
           test_generating.test_prompts_longer_than_the_budget_are_continued, GENERATING),
    Mutant("generate-rows", "all rows are continued as the first", "plausible", generating(Together),
           test_generating.test_rows_are_continued_independently, GENERATING),
    Mutant("generate-state", "a prompt is continued with the cache of the one before", "plausible",
           generating(Continuing), test_generating.test_later_calls_do_not_depend_on_earlier_ones, GENERATING),
    Mutant("generate-model", "an attribute is left on the model", "plausible", generating(Attached),
           test_generating.test_the_model_of_a_generating_function_is_left_unchanged, GENERATING),
]
# fmt: on
