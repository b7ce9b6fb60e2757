"""Logits of the last tokens only, for models with many words."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import pad


@contextmanager
def last_logits(model: Any, tokens: int) -> Iterator[None]:
    """Context in which logits are those of the last tokens of a pass, and 0 for the others.

    With 262,144 words, logits of tokens that are not scored would take longer than all else.
    """
    lengths: list[int] = []

    def shorten(module: nn.Module, given: tuple[Tensor]) -> tuple[Tensor]:
        lengths.append(given[0].shape[1])
        return (given[0][:, -tokens:],)

    def lengthen(module: nn.Module, given: Any, logits: Tensor) -> Tensor:
        return pad(logits, (0, 0, lengths.pop() - logits.shape[1], 0))

    head = model.get_output_embeddings()
    handles = [head.register_forward_pre_hook(shorten), head.register_forward_hook(lengthen)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
