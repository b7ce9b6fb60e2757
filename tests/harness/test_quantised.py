"""Declarations of quantised caches are validated, what is not declared is inferred, and noise is told from faults."""

import re
from typing import Any

import pytest
import torch

from harness.mutants.quantised import Unbiased
from harness.mutants.right_quantised import (
    BLOCKS,
    KIVI,
    RING,
    UNDECLARED,
    WAITING,
    FlushesBlocks,
    PackedLayer,
    PerToken,
    Rotated,
    blocks,
    int4,
    of_bits,
    pack,
    quantised,
    unpack,
)
from pressgauge.conformance import architectures
from pressgauge.conformance.declares import read_declares
from pressgauge.conformance.outcomes import NOTES, Departure
from pressgauge.conformance.quantisation import grouped, half_steps, ungrouped
from pressgauge.conformance.quantised_checks import check_feedings, check_levels, check_residual, inferred
from pressgauge.conformance.quantised_inputs import check_extremes, check_inner_products, check_rows
from pressgauge.conformance.session import run
from pressgauge.conformance.severity import Severity, check_same_entries
from pressgauge.conformance.strategies import normal_keys
from pressgauge.conformance.traces import audited, run_scripted


@pytest.mark.parametrize(
    ("declared", "refusal"),
    [
        ({"bits": 4}, "declares bits is about quantised entries: declare entries as 'quantised', too"),
        ({"entries": "quantised", "bits": 0}, "declares bits must be a number of bits up to 16"),
        ({"entries": "quantised", "bits": (4, "two")}, "or a pair of them for keys and values, got (4, 'two')"),
        ({"entries": "quantised", "group": 2.5}, "declares group must be a whole number from 1 on"),
        ({"entries": "quantised", "axis": "head"}, "declares axis must be 'token' or 'channel'"),
        ({"entries": "quantised", "residual": -1}, "a whole number of newest tokens, 0 for none, got -1"),
        ({"entries": "quantised", "ratio": 0}, "declares ratio must be a positive number"),
        ({"entries": "quantised", "error": 1.5}, "declares error must be a relative error between 0 and 1, got 1.5"),
        ({"entries": "quantised", "simulated": "yes"}, "declares simulated must be one of True, False, got 'yes'"),
    ],
)
def test_a_wrong_declaration_is_refused_in_one_sentence(declared: dict[str, Any], refusal: str) -> None:
    """The refusal names the declaration, its rule and the value."""
    with pytest.raises(ValueError, match=re.escape(refusal)):
        read_declares(declared, "cache")


def test_bits_are_packed_and_read_in_order() -> None:
    """Codes of 2, 4 and 8 bits are had back from their bytes."""
    for bits in (2, 4, 8):
        codes = torch.arange(64) % 2**bits
        assert pack(codes, bits).shape == (64 * bits // 8,)
        assert torch.equal(unpack(pack(codes, bits), bits).long(), codes)


def test_groups_are_had_back() -> None:
    """Grouping along either axis is inverted, but for tokens that fill no group."""
    x = torch.randn(2, 3, 11, 8)
    assert torch.equal(ungrouped(grouped(x, "token", 4), "token"), x)
    assert torch.equal(ungrouped(grouped(x, "channel", 4), "channel"), x[:, :, :8])


def test_half_a_step_is_of_the_own_group() -> None:
    """Of numbers from 0 to 3 with two bits half a step is .5; for symmetric codes 1.5, which is allowed, too."""
    limits = half_steps(torch.tensor([[0.0, 1, 2, 3], [-30, 0, 10, 30]]), 2)
    assert limits[:, 0].tolist() == pytest.approx([1.5, 15], rel=0.05)


def test_bits_are_inferred_from_distinct_numbers() -> None:
    """Two bits per token and per channel show, and continuous numbers show none."""
    levels = torch.tensor([0.1, 0.3, 0.7, 0.9])[torch.randint(0, 4, (1, 2, 64, 32))]
    assert inferred(levels) == "2 bits (at most 4 distinct numbers in 32 channels of a token)"
    per_channel = levels * (1 + torch.arange(32.0))
    assert inferred(per_channel) == "2 bits (at most 4 distinct numbers in 64 tokens of a channel)"
    assert "cannot be inferred" in inferred(torch.randn(1, 2, 64, 32))


def test_what_is_not_declared_is_reported() -> None:
    """For a subject that declares nothing, the error of what is read back is noted, and the residual inferred."""
    NOTES.clear()
    check_levels(UNDECLARED)
    assert any(re.search(r"keys: .* relative error 0\.0\d", sentence) for sentence in NOTES)
    with pytest.raises(pytest.skip.Exception, match=r"the newest 0 to 0 of the keys, 0 to 0 of the values are exact"):
        check_residual(UNDECLARED)
    layer = quantised("undeclared residual", lambda: PackedLayer(PerToken(4, 8), PerToken(4, 8), 5))
    with pytest.raises(pytest.skip.Exception, match=r"the newest 1 to 5 of the keys, 1 to 5 of the values are exact"):
        check_residual(layer)


def test_a_declaration_that_contradicts_what_is_seen_is_a_finding() -> None:
    """Bits, residual and error are compared with what is read back."""
    for declared, what in (({"bits": 2, "group": 8}, "2 bits allow 4"), ({"bits": 4}, "4 bits allow 16")):
        wrong = quantised(
            "wrong", lambda: PackedLayer(PerToken(4, 8), PerToken(4, 8)), axis="token", residual=0, **declared
        )
        with pytest.raises(Departure, match=what):
            check_levels(wrong)
    wrong = quantised("wrong", lambda: PackedLayer(PerToken(4, 8), PerToken(4, 8), 2), residual=3)
    with pytest.raises(Departure, match="the newest 2 are exact; 3 are declared"):
        check_residual(wrong)


def test_tokens_that_wait_to_be_quantised_together_are_no_finding() -> None:
    """More exact tokens than the residual, up to a declared block or as many again, break no law; those beyond what is
    declared are noted."""
    for subject, noted in ((WAITING, ["up to 11 of the newest tokens are exact, and 6 are declared"]), (BLOCKS, [])):
        NOTES.clear()
        check_levels(subject)
        check_residual(subject)
        check_feedings(subject)
        assert [sentence.partition(" as the residual")[0] for sentence in NOTES] == noted
    late = quantised("late", lambda: FlushesBlocks(PerToken(4, 8), PerToken(4, 8), 6, 9), bits=4, residual=6)
    with pytest.raises(Departure, match=r"is exact in layer 0, and .* that are older than the newest 6; a residual of"):
        check_residual(late)


def test_rows_of_a_long_residual_are_judged() -> None:
    """A batch of texts beyond a residual and a block of 128 tokens is not too long for the scripted model."""
    check_rows(blocks(128))


def test_kinds_of_extreme_entries_are_listed() -> None:
    """Of a cache whose scales are in float16, and in which NaN spreads, all kinds that it reads back wrongly are
    listed: what is finite and does not come back so first, and NaN last."""

    class Scales(PerToken):
        def decode(self, parts: Any) -> torch.Tensor:
            packed, step, low = parts
            entries = super().decode((packed, step.half().float(), low.half().float()))
            return entries + 0 * entries.sum()

        def range(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            low, step = super().range(x)
            return low, step.clamp(min=1e-3)

    with pytest.raises(Departure) as finding:
        check_extremes(int4(codec=Scales))
    kinds = re.findall(r"(?:^|; )([^:;]+): (?:keys|values) of layer", str(finding.value))
    assert kinds == ["1e5", "1e-4", "NaN in one entry"]
    assert re.match(
        r"1e5: keys of layer 0: channel \d+ of token \d+ \(KV head \d\) is read back as", str(finding.value)
    )


def test_severity_tells_noise_from_a_fault() -> None:
    """A deviation of a thousandth of the own error is noted, one of its size is a finding that states both."""
    arrived, errors = torch.randn((2, 4, 1000), generator=torch.Generator().manual_seed(0))
    read = arrived + 0.1 * errors
    NOTES.clear()
    check_same_entries(read + 1e-5, read, arrived, "keys are read back otherwise,")
    assert len(NOTES) == 1
    assert re.search(
        r"by up to 1e-05, (?:0.0001|9\.\de-05) of its own quantisation error \(root mean square 0\.\d+\)", NOTES[0]
    )
    with pytest.raises(Departure, match=r"by up to 0\.2, [12]\.?\d* of its own quantisation error .*, in 1e\+02 %"):
        check_same_entries(read + 0.2, read, arrived, "keys are read back otherwise,")
    assert Severity(0.5).is_noise(0.004)
    assert not Severity(0.5).is_noise(0.1)
    assert not Severity(0.0).is_noise(1e-12)
    assert Severity(0.5).beside(0.1) == ", 0.2 of what its quantisation changes (0.5),"
    assert Severity(0.0).beside(0.1) == ", where its quantisation changes nothing,"
    assert Severity(0.0, quantised=False).beside(0.1) == ""


def test_the_own_error_is_none_where_nothing_is_quantised_yet() -> None:
    """Of a text within the residual the own error is 0, not the rounding of attention; of a longer one it is more."""
    model = architectures.shared("llama")
    for subject, exact in (
        (quantised("long", lambda: PackedLayer(PerToken(4, 8), PerToken(4, 8), 99)), True),
        (RING, False),
    ):
        trace = run(subject, model, architectures.text(model, 1, 20), [15, 1, 1, 1, 1, 1])
        assert (Severity.of_logits(trace).own == 0) is exact


def test_an_entry_that_is_not_finite_is_called_so() -> None:
    """A finite key that is read back as infinite has no distance from any token, which the finding does not give."""

    class Overflowing(PackedLayer):
        def read_back(self, index: int) -> torch.Tensor:
            entries = super().read_back(index).clone()
            entries[:, 1, 4, :2] = torch.inf
            return entries

    trace = run_scripted(int4(Overflowing), normal_keys(9), [9], keep_ratio=1)
    with pytest.raises(Departure, match=r"KV head 1, entry 4 has a key that is not finite \(2 of 32 numbers\)"):
        audited(trace).match(0, 0, None)


def test_a_single_code_that_is_rounded_otherwise_is_noise() -> None:
    """One number in a thousand may differ by a step, since rotations are rounded otherwise in other shapes."""
    arrived = torch.randn(4, 1000)
    read = (arrived * 4).round() / 4
    flipped = read.clone()
    flipped[0, 0] += 0.25
    check_same_entries(flipped, read, arrived, "keys are read back otherwise,")
    flipped[:, :10] += 0.25
    with pytest.raises(Departure):
        check_same_entries(flipped, read, arrived, "keys are read back otherwise,")


def test_the_t_test_of_inner_products_spares_what_is_unbiased() -> None:
    """Ten rotations whose inner products are unbiased pass, and biased ones of the same bits never do."""
    for seed in range(10):
        right, wrong = (
            quantised(
                kind.__name__,
                lambda kind=kind, seed=seed: PackedLayer(kind(2, seed), kind(2, seed + 100)),
                bits=2,
                error=0.5,
                residual=0,
                unbiased=True,
            )
            for kind in (Unbiased, Rotated)
        )
        check_inner_products(right)
        with pytest.raises(Departure, match="they are declared as unbiased"):
            check_inner_products(wrong)


def test_subjects_of_one_factory_differ_in_bits() -> None:
    """The factory of subjects with bits has them as an option."""
    assert of_bits(2).factory.options == {"bits": [2, 4, 8]}  # type: ignore[attr-defined]
    assert KIVI.declares.axis == ("channel", "token")
