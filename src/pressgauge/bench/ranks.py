"""Ranks: processes that a launcher started to share a sweep, by accelerate."""

import os
import platform
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

PATIENCE = timedelta(days=365)
"""How long a rank waits for the results of the slowest; a rank that ends early ends the waiting of all."""


def launched() -> tuple[int, int]:
    """Index of this process and number of processes, as ``torchrun`` and ``accelerate launch`` set them."""
    try:
        rank, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    except (KeyError, ValueError):
        return 0, 1
    return rank, count


class Lost(Exception):  # noqa: N818  # what happened to other ranks
    """Other ranks ended before they reported."""


@dataclass(frozen=True)
class Ranks:
    """This process among those that share a sweep.

    Attributes:
        index: from 0 on; rank 0 writes and prints.
        count: number of ranks; 1 without a launcher.
        shared: whether other ranks compute on the same device.
    """

    index: int = 0
    count: int = 1
    shared: bool = False

    def gather(self, value: Any) -> list[Any]:
        """The values of all ranks, in their order; each waits for all others.

        Raises:
            Lost: if a rank has ended.
        """
        if self.count == 1:
            return [value]
        from accelerate.utils import gather_object

        try:
            found: list[Any] = gather_object([value])
        except RuntimeError as error:
            raise Lost("other ranks ended before they had reported their results") from error
        return found


def join(*, cpu: bool, together: bool = False) -> Ranks:
    """The ranks that the launcher started, each with a device of its own as far as there are enough.

    Args:
        cpu: whether to compute on the CPU.
        together: whether ranks share a model, and not only a sweep.

    Raises:
        ModuleNotFoundError: if there are several and accelerate is not installed.
    """
    _, count = launched()
    if count == 1:
        return Ranks()
    from accelerate import PartialState

    # Results are objects in the main memory; gloo moves them from anywhere and notices when a rank ends.
    state = PartialState(cpu=cpu, timeout=PATIENCE, **({} if together else {"backend": "gloo"}))
    device = "cpu" if cpu else f"{state.device.type}:{state.device.index or 0}"
    ranks = Ranks(state.process_index, state.num_processes)
    places = ranks.gather((platform.node(), device))
    return Ranks(ranks.index, ranks.count, places.count(places[ranks.index]) > 1)
