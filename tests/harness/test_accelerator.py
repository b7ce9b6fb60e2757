"""Device handling on a simulated accelerator: everything runs on it, with the results of the CPU."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from conformance import test_attention, test_counts, test_entries, test_identity, test_leaks
from conformance import test_rows as rows
from conformance.ours import ours_by_default
from harness.mutants.compressors import cached, with_layers
from harness.mutants.plain import Plain, plain
from pressgauge import KeyDiffPress, KnormPress, Press, RandomPress, StreamingLLMPress, generate, perplexity
from pressgauge.cache import PressedLayer
from pressgauge.conformance import architectures, devices
from pressgauge.conformance.subjects import Subject
from pressgauge.likelihood import Method
from regression.decoding import cases, read
from support.accelerator import Away, accelerator
from support.laws import Law, judged, words

OURS = {subject.name: subject for subject in ours_by_default()}
LAWS: list[Law] = [
    test_counts.test_heads_and_layers_agree_on_the_shape,
    test_entries.test_of_equal_entries_the_earlier_is_retained,
    test_entries.test_dtype_and_device_are_preserved,
    test_attention.test_logits_are_those_of_attention_to_the_held_entries,
    test_attention.test_a_copied_cache_is_independent,
    test_identity.test_a_ratio_of_one_changes_nothing_in_any_dtype,
    test_identity.test_generate_attends_to_the_held_entries,
    rows.test_padding_has_no_effect,
    test_leaks.test_a_second_sequence_is_independent_of_the_first,
    test_leaks.test_the_model_is_left_unchanged,
    test_leaks.test_evicted_entries_are_freed,
]
"""Laws that cover all device handling."""
CASES = [("knorm-budget", law) for law in LAWS] + [
    (name, law) for name in ("plain-KnormPress-step", "compress-function") for law in LAWS[:3]
]
"""One subject of each convention, since attention and generation are common to all."""
PRESSES: dict[str, Press | None] = {
    "none": None,
    "knorm": KnormPress(0.5, prune_after=4, recent=2),
    "streaming-llm": StreamingLLMPress(0.3, prune_after=4, sinks=2, schedule="step"),
    "random": RandomPress(0.5, prune_after=4, schedule="prefill"),
    "keydiff": KeyDiffPress(0.5, prune_after=4),
}


@pytest.fixture
def device() -> Iterator[torch.device]:
    """The accelerator, with models under test on it."""
    with accelerator() as device:
        devices.choose(device)
        try:
            yield device
        finally:
            devices.choose(torch.device("cpu"))


def test_it_is_as_strict_as_a_real_one(device: torch.device) -> None:
    """Mixing devices and implicit conversions to NumPy raise errors, and scalars are allowed."""
    there = torch.arange(6, device=device).view(2, 3)
    assert isinstance(there, Away)
    assert there.device == device
    assert there[:, [0, 2]].tolist() == [[0, 2], [3, 5]]
    assert (there * 2 + torch.tensor(1)).cpu().tolist() == [[1, 3, 5], [7, 9, 11]]
    assert int(there.sum()) == 15
    assert there.cpu().numpy().sum() == 15
    for careless in (lambda: there + torch.ones(2, 3), lambda: there.gather(1, torch.zeros(2, 1, dtype=torch.long))):
        with pytest.raises(RuntimeError, match="one tensor is on the accelerator and one on the CPU"):
            careless()
    with pytest.raises(TypeError, match="copy it to the CPU first"):
        there.numpy()


@pytest.mark.parametrize(("name", "law"), CASES, ids=lambda value: value if isinstance(value, str) else words(value))
def test_the_laws_hold_on_the_accelerator(name: str, law: Law, device: torch.device) -> None:
    """Laws hold on the accelerator as on the CPU."""
    result, reason = judged(law, OURS[name])
    assert result in ("held", "not applicable"), reason


class OnTheCPU(Plain):
    """Creates indices on the CPU, whatever the device of the keys."""

    def choose(self, scores: Tensor, count: int) -> Tensor:
        return super().choose(scores.cpu(), count)


def test_indices_on_the_wrong_device_are_found(device: torch.device) -> None:
    """Indices on the wrong device raise torch's own error, and the compressor is correct on the CPU."""
    law = test_counts.test_heads_and_layers_agree_on_the_shape
    subject: Subject = plain(OnTheCPU)
    assert judged(law, subject)[0] == "crashed"
    devices.choose(torch.device("cpu"))
    assert judged(law, subject)[0] == "held"


class LeftOnTheCPU(Plain):
    """Returns retained entries on the CPU."""

    def take(self, tensor: Tensor, kept: Tensor) -> Tensor:
        return super().take(tensor, kept).cpu()


class MovedLayer(PressedLayer):
    """Returns entries on the CPU when read."""

    def _ordered(self, name: str) -> Tensor | None:
        found = super()._ordered(name)
        return None if found is None else found.cpu()


@pytest.mark.parametrize("subject", [plain(LeftOnTheCPU), cached(with_layers(MovedLayer))], ids=["function", "cache"])
def test_entries_on_another_device_are_a_finding(subject: Subject, device: torch.device) -> None:
    """The law about devices finds entries on another device."""
    law = test_entries.test_dtype_and_device_are_preserved
    result, finding = judged(law, subject)
    assert result == "broken"
    assert "on meta" in finding
    assert "on cpu" in finding
    devices.choose(torch.device("cpu"))
    assert judged(law, subject)[0] == "held"


@pytest.mark.parametrize(
    ("name", "method"),
    [*((name, "onepass") for name in PRESSES), ("knorm", "stepwise"), ("keydiff", "stepwise"), ("none", "plain")],
)
def test_perplexity_equals_that_on_the_cpu(name: str, method: Method, device: torch.device) -> None:
    """Perplexity with padded rows is bit-identical to that on the CPU."""
    ids, mask = architectures.padded([14, 9])
    found: list[Any] = []
    for there in (device, torch.device("cpu")):
        model = architectures.cast("qwen2", torch.float64, there)
        found.append(perplexity(model, ids.to(there), PRESSES[name], 6, method, attention_mask=mask.to(there)))
    mine, own = found
    assert not isinstance(mine.nll, Away)
    assert mine.nll.nan_to_num(-1).equal(own.nll.nan_to_num(-1))
    assert (mine.held, mine.evictions, mine.kv_bytes) == (own.held, own.evictions, own.kv_bytes)
    assert all(one.equal(other) for one, other in zip(mine.evicted_at, own.evicted_at, strict=True))


def test_tokens_equal_those_on_the_cpu(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Greedy and sampled tokens equal those on the CPU, and timing waits for the device."""
    waited: list[torch.device] = []
    monkeypatch.setattr(torch.accelerator, "synchronize", waited.append)
    ids = architectures.tokens(2, 9)
    found = []
    for there in (device, torch.device("cpu")):
        model = architectures.cast("llama", torch.float64, there)
        found.append(generate(model, ids.to(there), PRESSES["knorm"], 6).tokens.cpu())
    assert found[0].equal(found[1])
    assert len(waited) == 7
    assert set(waited) == {device}


def test_entries_read_equal_those_on_the_cpu(device: torch.device) -> None:
    """A row of the baseline ``entries`` equals that on the CPU."""
    press = dict(cases(64))["knorm budget sinks=2 recent=3"]
    found = read(press, torch.float32)
    devices.choose(torch.device("cpu"))
    assert found == read(press, torch.float32)
