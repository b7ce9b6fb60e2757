"""The interface of adapters: a compressor of any convention, applied to a model."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

from torch import Tensor
from transformers import DynamicCache

Layers = list[tuple[Tensor, Tensor]]
"""Keys ``[B, K, N, D]`` and values ``[B, K, N, D']`` of each layer."""


class Adapter(ABC):
    """A compressor applied to a model, independent of its convention.

    Args:
        compressor: result of a subject's factory.
        model: the model.
    """

    kind: ClassVar[str]
    """Name of the convention in ``declares``."""
    words: ClassVar[str]
    """Description of the convention."""
    schedule: ClassVar[str]
    """Schedule expected of a subject that declares none."""
    supplies_positions: ClassVar[bool] = False
    """Whether the caller supplies true positions."""
    exact: ClassVar[bool] = True
    """Whether attention is transformers' own.

    If so, an uncompressed run is bit-identical to one with a ``DynamicCache``.
    """
    between_passes: ClassVar[bool] = False
    """Whether the compressor is called between passes."""
    declines_batches: ClassVar[bool] = False
    """Whether it may decline batches of several rows, since it cannot see padding."""
    beyond: ClassVar[Mapping[str, str]] = {}
    """Features outside the convention, with reasons; laws about them are not applicable."""
    made_anew: ClassVar[bool] = False
    """Whether the factory is called for each sequence, since what it returns serves one."""
    opaque: ClassVar[str] = ""
    """Reason why nothing shows but the generated tokens; empty for other conventions."""
    sees_model: ClassVar[bool] = False
    """Whether it works on the model itself, and not on a cache only."""
    shared: ClassVar[str] = ""
    """Phrase for findings: what further sequences through one compressor share."""

    def __init__(self, compressor: Any, model: Any) -> None:
        self.compressor, self.model = compressor, model

    @staticmethod
    @abstractmethod
    def fits(compressor: object) -> bool:
        """Whether an object follows this convention and none listed before it."""

    def start(self) -> Any:
        """Create an empty cache."""
        return DynamicCache(config=self.model.config)

    def at_work(self) -> AbstractContextManager[Any]:
        """Context manager in which the model runs with the compressor."""
        return nullcontext()

    def compress(self, layers: Layers) -> Layers:
        """Compressed entries to store after a pass, for a convention called between passes.

        Raises:
            NotImplementedError: for other conventions.
        """
        raise NotImplementedError(f"{self.kind} is not called between passes")
