"""kvcrush 0.1.0: ``TurboQuant(bits=4)``, a codec of numpy arrays that is installed as ``turboquant``."""

import numpy as np
from turboquant import TurboQuant

from peers.verify.plain import entries, still


def test_the_error_is_larger_than_the_numbers() -> None:
    """Differences of consecutive numbers are quantised, so errors add up along the array."""
    keys = entries(256)[0].numpy().astype(np.float64)
    codec = TurboQuant(bits=4)
    restored = np.asarray(codec.decompress(codec.compress(keys))).reshape(keys.shape)
    off = float(np.linalg.norm(restored - keys) / np.linalg.norm(keys))
    still(off > 0.5, f"relative error {off:.2f} at 4 bits", "below .001, as the module's table says")


def test_without_differences_it_is_above_what_is_claimed_too() -> None:
    """With ``use_delta=False`` the error is that of 4 bits."""
    keys = entries(256)[0].numpy().astype(np.float64)
    codec = TurboQuant(bits=4)
    restored = np.asarray(codec.decompress(codec.compress(keys, use_delta=False))).reshape(keys.shape)
    off = float(np.linalg.norm(restored - keys) / np.linalg.norm(keys))
    still(off > 0.01, f"relative error {off:.3f} at 4 bits", "below .001, as the module's table says")
