"""A layer of a pressed cache that keeps the states of linear attention beside its entries."""

from typing import Any

from torch import Tensor
from transformers import cache_utils

from pressgauge.cache.layer import PressedLayer
from pressgauge.presses.base import Press
from pressgauge.rules import Ledger

_States: Any = getattr(cache_utils, "LinearAttentionLayer", object)
"""Layers of linear attention; releases of transformers without them have no such layers, either."""


class HybridLayer(PressedLayer, _States):  # type: ignore[misc]  # it differs between releases
    """One layer of a pressed cache whose model has attention and a recurrence in one layer (Falcon-H1).

    Entries are evicted, and states are left as they are.

    Args:
        press: the press.
        index: index of the layer.
        ledger: counts shared by all layers of the cache.
        latent: as in ``Entries``.
        states: number of states of the model's own layer.
    """

    def __init__(self, press: Press, index: int, ledger: Ledger, latent: bool, states: int) -> None:
        _States.__init__(self, number_of_states=states)
        super().__init__(press, index, ledger, latent)

    def lazy_initialization(self, *entries: Any, **states: Any) -> None:
        """Initialise empty storage by the first keys and values, or empty states by names."""
        if entries:
            super().lazy_initialization(*entries)
        else:
            _States.lazy_initialization(self, **states)

    def reset(self) -> None:
        """Reset to an empty layer; the cache resets the ledger."""
        self.__init__(self.press, self.index, self.ledger, self.latent, self.number_of_states)  # type: ignore[misc]

    def check_crop(self, columns: int) -> None:
        """Raise ``ValueError``, since states have taken in all tokens."""
        if any(self.has_previous_state.values()):
            raise ValueError(
                f"cannot crop to {columns} tokens: layer {self.index} has recurrent states, which cannot be restored; "
                "start again with a new cache"
            )

    def _select(self, rows: Tensor) -> None:
        super()._select(rows)
        _States.reorder_cache(self, rows)
