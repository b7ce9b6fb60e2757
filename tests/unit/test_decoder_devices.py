"""Generation on other devices than the CPU."""

import pytest
import torch
from torch import Tensor

from pressgauge import KnormPress, generate
from pressgauge.conformance import architectures
from support.accelerator import accelerator


def generated(device: torch.device) -> list[Tensor]:
    """Tokens of two padded rows, the second of which ends, and of a generation that continues with its cache."""
    model = architectures.cast("llama", torch.float64, device)
    ids, mask = (tensor.to(device) for tensor in architectures.padded([9, 6]))
    press = KnormPress(0.5, prune_after=4)
    free = generate(model, ids, press, 5, attention_mask=mask).tokens
    end = int(free[1, 10])
    first = generate(model, ids, press, 5, attention_mask=mask, eos_token_id=end)
    whole = generate(model, ids[:1], press, 4)
    more = generate(model, torch.cat([whole.tokens, ids[:1, :1]], dim=1), press, 3, cache=whole.cache)
    return [tensor.cpu() for tensor in (free, first.tokens, more.tokens, torch.tensor(first.generated))]


def test_tokens_are_those_of_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """With padding, tokens that end a row, and a cache that is passed on."""
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda device: None)
    expected = generated(torch.device("cpu"))
    assert int(expected[3]) < 2 * 5
    with accelerator() as device:
        assert all(map(torch.equal, generated(device), expected))


def test_a_seed_is_that_of_a_generator_on_the_device_of_the_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sampling on a GPU needs one there."""
    made: list[torch.device] = []
    own = torch.Generator

    def noted(device: torch.device) -> torch.Generator:
        made.append(device)
        return own(device=device)

    model, ids = architectures.shared("llama"), architectures.tokens(1, 5)
    monkeypatch.setattr(torch, "Generator", noted)
    generate(model, ids, None, 2, temperature=1.0, seed=3)
    assert made == [ids.device]
