"""What laws about operations ask of transformers' own cache is asked while no compressor is at work."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from pressgauge.conformance import architectures
from pressgauge.conformance.operations import excused, flaws, started
from pressgauge.conformance.subjects import subject_of


class Patching:
    """A context that replaces an update of transformers' layers, for heads of the usual sizes only."""

    def __init__(self, keep_ratio: float) -> None:
        pass

    @contextmanager
    def __call__(self, model: Any) -> Iterator[None]:
        original = DynamicLayer.update

        def update(self: Any, keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> Any:
            if keys.shape[-1] < 8:
                raise IndexError("heads are too small")
            return original(self, keys, values, *args, **kwargs)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(DynamicLayer, "update", update)
            yield


def test_a_compressor_at_work_does_not_meet_probes() -> None:
    """Within a context that changes transformers' layers, the flaws of its cache are already known."""
    flaws.cache_clear()
    declares = {"kind": "context", "prune_after": None, "skip_layers": None, "target": lambda seen, held: held}
    subject = subject_of("patching", Patching, declares)
    with started(subject, architectures.shared("llama"), {"keep_ratio": 1.0}, 9) as session:
        with pytest.raises(IndexError):
            DynamicCache().update(torch.ones(1, 1, 3, 2), torch.ones(1, 1, 3, 2), 0)
        assert isinstance(excused(session.cache, "reset"), str)
