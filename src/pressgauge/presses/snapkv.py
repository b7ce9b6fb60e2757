"""``SnapKVPress``."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pressgauge.presses.attention_scores import LastQueries, Votes
from pressgauge.presses.base import Press
from pressgauge.rules import Schedule


@dataclass(frozen=True)
class SnapKVPress(Press):
    """Retains the entries that the observation window attends to, and their neighbours.

    The score is the attention that an entry receives from the last ``recent`` tokens, the observation window,
    average-pooled over ``kernel`` neighbouring entries (Li et al. 2024, arXiv 2404.14469, section 4.2 and listing 1).
    The window itself is never evicted.

    Paper and authors' code agree on a kernel of 5 and differ in the window: 16 or 32 in the experiments, 64 in the
    code and here. Pooling is zero-padded at the ends of the text, and entries in the window count as zero. With grouped
    queries, the heads that share a KV head are averaged. In the paper, the prompt is compressed once, in one pass. Here
    the window is the last tokens, whichever passes fed them.

    Attributes:
        recent: size of the observation window, at least 1.
        kernel: size of the pooling kernel, in entries; odd.

    Raises:
        TypeError: if ``kernel`` is not an integer.
        ValueError: if ``recent`` is less than 1, or ``kernel`` is not a positive odd number.
    """

    needs_queries: ClassVar[bool] = True
    recent: int = 64
    schedule: Schedule = "prefill"
    kernel: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.recent < 1:
            raise ValueError(
                f"recent must be at least 1 for SnapKVPress, which scores by the newest queries, got {self.recent}"
            )
        if isinstance(self.kernel, bool) or not isinstance(self.kernel, int):
            raise TypeError(f"kernel must be a whole number, got {self.kernel!r}")
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise ValueError(f"kernel must be an odd number of neighbours, got {self.kernel}")

    def votes(self) -> Votes:
        """Queries of the observation window."""
        return LastQueries(self.recent)

    def score(self, keys: Tensor, *, positions: Tensor, layer: int, votes: Votes | None = None) -> Tensor:
        """Pooled mean attention from the window: ``[B, K, N]``, in float32 or wider."""
        assert votes is not None
        received = votes.of(keys)
        # Entries that have left the layer's window had attention until then.
        received.masked_fill_(positions < 0, 0)
        received[..., -self.recent :] = 0
        # Padding slots have zero attention but may separate neighbours: close the gaps, then pool with zero padding.
        place = (positions >= 0).cumsum(dim=-1)
        together = received.new_zeros((*received.shape[:2], received.shape[2] + self.kernel))
        together[..., self.kernel // 2 :].scatter_add_(2, place, received)
        return together.unfold(2, self.kernel, 1).sum(dim=-1).div_(self.kernel).gather(2, place)

    def pooled(self, received: NDArray[Any], empty: NDArray[Any]) -> NDArray[Any]:
        """Pooled mean attention from the window."""
        rows, heads, _ = received.shape
        entries = ~empty
        together = received[entries].reshape(rows, heads, -1)
        count = together.shape[2]
        spread = np.zeros((rows, heads, count + self.kernel - 1), dtype=received.dtype)
        outside = count - self.recent
        spread[..., self.kernel // 2 :][..., :outside] = together[..., :outside]
        for place in range(self.kernel):
            part = spread[..., place : place + count]
            together = part.copy() if not place else np.add(together, part, out=together)
        together /= self.kernel
        received[entries] = together.ravel()
        return received
