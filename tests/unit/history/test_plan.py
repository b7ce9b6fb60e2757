"""Presses with rules of their own on how many entries are retained or protected are replayed by these."""

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from pressgauge import H2OPress, KnormPress, Press, StreamingLLMPress, TOVAPress, perplexity, replay
from pressgauge.conformance import architectures
from pressgauge.history import NEVER
from pressgauge.history.plan import plan_of
from pressgauge.rules import Window
from support.budgets import SizedPress, SizedTOVAPress, SparingPress, SparingTOVAPress
from support.drive import feed

TOKENS = 60
OPTIONS: dict[str, Any] = {"prune_after": 4, "sinks": 1}
RULES: dict[type[KnormPress], tuple[Callable[[int, int], int], Callable[[int], int]]] = {
    SizedPress: (lambda seen, held: min(held, 5 + seen // 10), lambda kept: 0),
    SparingPress: (lambda seen, held: min(held, max(4, -(-seen // 2))), lambda kept: min(kept - 1, kept * 7 % 9)),
}
"""The target and the number of protected newest tokens, written out."""


def expected(kind: type[KnormPress], norms: Sequence[int], passes: Sequence[int], window: int | None) -> list[int]:
    """``evicted_at`` by a plain loop over lists."""
    target, newest = RULES[kind]
    evicted_at, held, seen = [NEVER] * len(norms), list[int](), 0
    for tokens in passes:
        held += range(seen, seen + tokens)
        seen += tokens
        held = [j for j in held if window is None or j > seen - window]
        kept = target(seen if window is None else min(seen, window - 1), len(held))
        while len(held) > kept:
            free = [j for j in held if j >= 1 and j < seen - newest(kept)]
            gone = max(free, key=norms.__getitem__)
            held.remove(gone)
            evicted_at[gone] = seen
    return evicted_at


@pytest.mark.parametrize("window", [None, 20])
@pytest.mark.parametrize("passes", [[1] * TOKENS, [30, *[1] * 10, 7, *[2] * 5, 3]], ids=["singly", "in passes"])
@pytest.mark.parametrize("kind", RULES)
def test_own_rules_are_replayed_as_a_plain_loop_has_them(
    kind: type[KnormPress], passes: list[int], window: int | None
) -> None:
    """Entries without a window, and with one, and the record of a cache; norms differ in their first ten bits."""
    generator = torch.Generator().manual_seed(0)
    norms = torch.stack([torch.randperm(TOKENS, generator=generator) for _ in range(3)]) + 512
    keys = norms[None, :, :, None].double()
    press = kind(0.5, **OPTIONS)
    table = replay(press, keys, passes, window=None if window is None else Window(window))
    assert table[0].tolist() == [expected(kind, head, passes, window) for head in norms.tolist()]
    if window is None:
        assert feed(press, keys, passes).evicted_at[0].equal(table)


@pytest.mark.parametrize(
    ("kind", "usual"),
    [(SizedPress, KnormPress), (SparingPress, KnormPress), (SizedTOVAPress, TOVAPress), (SparingTOVAPress, TOVAPress)],
)
def test_own_rules_are_those_of_decoding_in_one_pass(kind: type[Press], usual: type[Press]) -> None:
    """The NLL of one pass is that of token-by-token decoding, also of padded rows, one of which has no token in the
    prompt, and differs from that under the usual rules."""
    model = architectures.shared("llama")
    ids, mask = architectures.padded([40, 25, 3])
    press = kind(0.5, **OPTIONS)
    one = perplexity(model, ids, press, 6, attention_mask=mask)
    stepwise = perplexity(model, ids, press, 6, "stepwise", attention_mask=mask)
    other = perplexity(model, ids, usual(0.5, **OPTIONS), 6, attention_mask=mask)
    torch.testing.assert_close(one.nll, stepwise.nll, rtol=0, atol=1e-9, equal_nan=True)
    assert all(a.equal(b) for a, b in zip(one.evicted_at, stepwise.evicted_at, strict=True))
    assert (one.nll - other.nll).abs().nan_to_num().max() > 1e-6


@pytest.mark.parametrize("window", [None, Window(20)])
def test_own_rules_hold_at_the_end_of_the_prompt(window: Window | None) -> None:
    """However it is fed: of 12 tokens, the 6 of the lowest norms are held, and nothing is evicted later."""
    norms = (torch.randperm(30, generator=torch.Generator().manual_seed(0)) + 512).double()
    press = SizedPress(0.5, prune_after=4, schedule="prefill")
    for passes in ([1] * 30, [5, 7, *[1] * 18]):
        table = replay(press, norms[None, None, :, None], passes, prompt_length=12, window=window)[0, 0]
        assert (table == 12).nonzero().flatten().tolist() == sorted(norms[:12].argsort()[6:].tolist())
        assert int((table == NEVER).sum()) == 24


def test_a_prompt_is_too_short_by_the_target_of_the_press() -> None:
    """Not by its ``prune_after``; and the sentence names what retains it."""
    model, ids = architectures.shared("llama"), architectures.tokens(1, 30)
    press = SizedPress(0.5, schedule="prefill")
    assert press.prune_after == 512
    assert perplexity(model, ids, press, 20).held == (17,) * architectures.LAYERS
    sentence = (
        "schedule 'prefill' acts once, after the prompt, and never with a prompt of 5 tokens all of which "
        "SizedPress.target retains: give a longer prompt"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        perplexity(model, ids, press, 5)
    # By the threshold alone, although a share of .99 of 17 tokens, rounded up, is all of them.
    usual = KnormPress(0.99, prune_after=16, schedule="prefill")
    assert [usual.spares(tokens) for tokens in (16, 17)] == [True, False]


def test_plans_of_equal_presses_with_a_target_of_their_own_differ() -> None:
    """A plan shared by the layers of a model is that of a budget; a press may have attributes of its own."""
    few, many = (plan_of(SizedPress(0.5, 4, size=size), [3, *[1] * 20], None, [0]) for size in (5, 8))
    assert (few.cuts[-1].held, many.cuts[-1].held) == ([7], [10])


BAD: list[tuple[type[Exception], dict[str, Any], dict[str, Any], str]] = [
    (ValueError, {"target": 40}, {}, "target(1, 1) must be at most the 1 entries held, got 40: return min(held, ...)"),
    (ValueError, {"target": 0}, {}, "target(1, 1) must be at least 1, got 0"),
    (ValueError, {"target": 1}, {"sinks": 2, "recent": 1}, "target(2, 2) must be at least 2, got 1"),
    (TypeError, {"target": 1.0}, {}, "target(1, 1) must be a whole number, got 1.0"),
    (
        ValueError,
        {"target": 1},
        {"keep_ratio": 1},
        "target(2, 2) must be 2 with keep_ratio=1, which retains everything, got 1",
    ),
    (TypeError, {"newest": 0.5}, {}, "newest(4) must be a whole number, got 0.5"),
]


def constant(base: type[Press], methods: dict[str, Any], **options: Any) -> Press:
    """A press whose methods return constants."""
    own = {name: lambda *_, value=value: value for name, value in methods.items()}
    press: Press = type("OwnPress", (base,), own)(**{"keep_ratio": 0.5, "prune_after": 4, **options})
    return press


@pytest.mark.parametrize("base", [KnormPress, TOVAPress, H2OPress])
@pytest.mark.parametrize("way", ["onepass", "stepwise", "window"])
@pytest.mark.parametrize(("error", "own", "options", "sentence"), BAD)
def test_impossible_rules_are_refused(
    base: type[Press], way: Any, error: type[Exception], own: dict[str, Any], options: dict[str, Any], sentence: str
) -> None:
    """At the first pass that they do not fit, in one pass, stepwise and in a window, by what they returned."""
    press = constant(base, own, **options)
    states = torch.randn(1, 2, 30, 4, generator=torch.Generator().manual_seed(0))
    run: Callable[[], object]
    if way == "window":
        run = partial(replay, press, states, [1] * 30, queries=states, window=Window(20))
    else:
        run = partial(perplexity, architectures.shared("llama"), architectures.tokens(1, 30), press, method=way)
    with pytest.raises(error, match=f"^{re.escape(f'OwnPress.{sentence}')}$"):
        run()


@pytest.mark.parametrize("base", [KnormPress, TOVAPress, H2OPress])
@pytest.mark.parametrize("method", ["onepass", "stepwise"])
def test_as_many_tokens_are_protected_as_there_is_room_for(base: type[Press], method: Any) -> None:
    """None if the number is negative; all but the sinks if it is large, so that the oldest is evicted. A row of two
    tokens retains both."""
    ids, mask = architectures.padded([20, 2])
    for number, like in (
        (-3, constant(base, {"newest": 0}, sinks=1)),
        (99, StreamingLLMPress(0.5, prune_after=4, sinks=1)),
    ):
        tables, expected = (
            perplexity(architectures.shared("llama"), ids, press, 6, method, attention_mask=mask).evicted_at
            for press in (constant(base, {"newest": number}, sinks=1), like)
        )
        assert all(one.equal(other) for one, other in zip(tables, expected, strict=True))
        assert all(int((table[1] == NEVER).sum()) == 2 * table.shape[1] for table in tables)


def test_a_false_declaration_of_fixed_scores_is_refused_under_own_rules() -> None:
    """As under the usual ones."""

    class Aging(SparingPress):
        def score(self, keys: Tensor, *, positions: Tensor, layer: int, votes: Any = None) -> Tensor:
            return positions - positions.amax(dim=-1, keepdim=True)

    for window in (None, Window(20)):
        with pytest.raises(ValueError, match="Aging declares fixed_scores = True, but"):
            replay(Aging(0.5, 4), torch.ones(1, 1, 30, 2), [1] * 30, window=window)
