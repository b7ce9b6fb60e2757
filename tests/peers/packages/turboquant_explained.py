"""turboquant-explained: ``turboquant.patch_model(model, b_key=2, b_value=2)``, which makes a cache."""

from typing import Any

import turboquant

from peers.packages.adapt import QUANTISES, declared


def factory(keep_ratio: float, model: Any, bits: int = 2) -> Any:
    """The README's call."""
    return turboquant.patch_model(model, b_key=bits, b_value=bits)


# "Memory vs FP16: ~1/8 at b=2, ~3/16 at b=3, ~1/4 at b=4".
declared(factory, lambda bits: {**QUANTISES, "kind": "instance", "bits": bits, "ratio": 16 / bits}, {"bits": [2, 4]})
