"""Models in float64 whose code computes some of it in float32."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch


@contextmanager
def float64_throughout() -> Iterator[None]:
    """Context in which code that asks for float32, as norms and recurrences do, gets float64.

    Two runs of a model in float64 then agree as float64 does.
    """
    default = torch.get_default_dtype()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "float32", torch.float64)
        patch.setattr(torch, "float", torch.float64)
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        torch.set_default_dtype(torch.float64)
        try:
            yield
        finally:
            torch.set_default_dtype(default)
