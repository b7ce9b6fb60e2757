"""turboquant: ``TurboQuantCache(bits=4)``. Its window of 128 tokens is no option of the cache."""

from typing import Any

import numpy as np
from turboquant import TurboQuantCache

from peers.packages.adapt import QUANTISES, declared


def factory(keep_ratio: float, bits: int = 4) -> Any:
    """The README's call."""
    return TurboQuantCache(bits=bits)


def older_numpy(keep_ratio: float, bits: int = 4) -> Any:
    """The same with ``np.trapz``, which numpy has before 2.4 and without which token 129 crashes."""
    vars(np).setdefault("trapz", np.trapezoid)
    return factory(keep_ratio, bits)


def promised(bits: int) -> dict[str, Any]:
    """What the README says: 4 bits, and "a residual window of 128 tokens"."""
    reports = {"bytes": lambda cache, _: cache.memory_usage_bytes()["total_bytes"]}
    return {**QUANTISES, "bits": bits, "residual": 128, "reports": reports}


declared(factory, promised, {"bits": [4]})
declared(older_numpy, promised, {"bits": [4, 3]})
