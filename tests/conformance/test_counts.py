"""Laws about the time of evictions and the number of retained entries."""

import math
from decimal import Decimal
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from pressgauge.conformance import architectures, oracle
from pressgauge.conformance.checks import check_counts, check_threshold
from pressgauge.conformance.outcomes import Departure, not_applicable
from pressgauge.conformance.session import run
from pressgauge.conformance.strategies import few, normal_keys, options_of, pass_lists, pruning
from pressgauge.conformance.subjects import Subject
from pressgauge.conformance.traces import drawn, run_scripted


def test_nothing_is_evicted_up_to_prune_after(subject: Subject) -> None:
    """Rule 2: a layer that holds ``prune_after`` entries or fewer evicts nothing (S1 and S2 of the bug catalogue)."""
    if not subject.declares.prune_after:
        not_applicable("the subject takes no prune_after")
    model = architectures.under_test("llama")
    for keep_ratio, prune_after, lengths in (
        (0.5, 6, [2] + [1] * 6),
        (0.1, 32, [28] + [1] * 6),
        (0.3, 512, [30] + [1] * 4 + [475] + [1] * 5),
    ):
        ids = architectures.text(model, 1, sum(lengths))
        check_threshold(subject, run(subject, model, ids, lengths, keep_ratio=keep_ratio, prune_after=prune_after))
        # In one pass, since some compressors act on the prompt only.
        for length in (prune_after - 1, prune_after, prune_after + 1):
            check_threshold(
                subject, run(subject, model, ids[:, :length], [length], keep_ratio=keep_ratio, prune_after=prune_after)
            )


@few
@given(data=st.data())
def test_every_layer_retains_the_number_its_schedule_sets(subject: Subject, data: st.DataObject) -> None:
    """Rule 2: after every pass, each layer holds the number that its schedule sets, however the text is fed."""
    trace = drawn(subject, data, options_of(subject), st.one_of(pruning(), pass_lists(24)))
    check_counts(subject, trace)
    if "interval" in subject.declares.takes:
        # Few draws reach the end of an interval.
        options = {"keep_ratio": 0.5, "prune_after": 4, "interval": 3}
        check_counts(subject, run_scripted(subject, normal_keys(14), [8] + [1] * 6, **options))


def test_a_skipped_layer_retains_everything(subject: Subject) -> None:
    """Rule 2: layers in ``skip_layers`` evict nothing, and the other layers do (S10 of the bug catalogue)."""
    if not subject.declares.skip_layers:
        not_applicable("the subject takes no skip_layers")
    model = architectures.under_test("llama")
    ids = architectures.text(model, 1, 20)
    for skipped in ((0,), (1,), (0, 2)):
        trace = run(subject, model, ids, [16] + [1] * 4, keep_ratio=0.5, prune_after=4, skip_layers=skipped)
        check_counts(subject, trace)


def test_counts_are_exact_for_decimal_ratios(subject: Subject) -> None:
    """Rule 3: a ratio is the decimal that was written: .07 of 100 is 7, not 8 (S4 of the bug catalogue)."""
    if subject.declares.target:
        not_applicable("the subject follows a rule of its own")
    model = architectures.under_test("llama")
    hundredths = [(n / 100, count) for n in range(1, 100) for count in range(2, 101)]
    up, down = oracle.ROUNDINGS["ceil"], oracle.ROUNDINGS["floor"]
    # Cases in which floats are wrong when rounding up, down, or down with the complement; and any others.
    families = [
        [(r, n) for r, n in hundredths if math.ceil(r * n) != up(r, n)],
        [(r, n) for r, n in hundredths if int(r * n) != down(r, n)],
        [(r, n) for r, n in hundredths if int(n * (1 - float(1 - Decimal(str(r))))) != down(r, n)],
        hundredths,
    ]
    for ratio, count in [case for family in families for case in family[:: len(family) // 4]]:
        ids = architectures.text(model, 1, count)
        options: dict[str, Any] = {"keep_ratio": ratio, "prune_after": 0}
        if "sinks" in subject.declares.takes:
            options["sinks"] = 0
        check_counts(subject, run(subject, model, ids, subject.once(count), **options))


def test_the_shortest_texts_retain_an_entry(subject: Subject) -> None:
    """Texts of 1 to 3 tokens retain at least one entry and give finite logits, at any ratio and ``prune_after`` around
    their length (S5 of the bug catalogue)."""
    model = architectures.under_test("llama")
    for length in (1, 2, 3):
        for prune_after in sorted({0, length - 1, length, length + 1}):
            for keep_ratio in (0.5, 0.001):
                options: dict[str, Any] = {"keep_ratio": keep_ratio, "prune_after": prune_after}
                ids = architectures.text(model, 1, length + 2)
                trace = run(subject, model, ids, [length, 1, 1], **options)
                for one in trace.passes:
                    least = min(keys.shape[2] for keys, _ in one.held)
                    if least < 1:
                        raise Departure(f"a layer holds no entries after {one.end} tokens with {options}")
                    if not one.logits.isfinite().all():
                        raise Departure(f"the logits from token {one.start} on are not finite with {options}")
                check_counts(subject, trace)


def test_the_pass_after_a_one_token_prompt_is_not_a_prompt(subject: Subject) -> None:
    """The first pass is the prompt, whatever its length (C7 of the bug catalogue)."""
    model = architectures.under_test("llama")
    ids = architectures.text(model, 1, 8)
    for lengths in ([1] * 8, [1, 5, 1, 1]):
        trace = run(subject, model, ids, lengths, keep_ratio=0.5, prune_after=2)
        check_counts(subject, trace)


def test_heads_and_layers_agree_on_the_shape(subject: Subject) -> None:
    """Keys and values of every layer are ``[B, K, N, D]`` with the same N."""
    model = architectures.under_test("llama")
    ids = architectures.text(model, 1, 20)
    trace = run(subject, model, ids, [16] + [1] * 4, keep_ratio=0.4, prune_after=3)
    for one in trace.passes:
        if len(one.held) != architectures.LAYERS:
            raise Departure(f"the cache has {len(one.held)} readable layers, and the model has {architectures.LAYERS}")
        for layer, (keys, values) in enumerate(one.held):
            if keys.shape[:3] != values.shape[:3] or keys.shape[:2] != one.arrived[layer][0].shape[:2]:
                raise Departure(
                    f"layer {layer} holds keys {list(keys.shape)} and values {list(values.shape)}; both must start "
                    f"with {list(one.arrived[layer][0].shape[:2])} and hold equally many entries"
                )
