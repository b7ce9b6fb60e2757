"""kakeyalattice 1.5.0: ``KakeyaLatticeCache(variant="e8", q_range=38, ...)``."""

import torch
from kakeyalattice.hf import KakeyaLatticeCache

from peers.verify.plain import entries, still


def test_large_keys_are_not_finite() -> None:
    """The scale of a vector is stored as float16, in which a norm above 65,504 is infinite."""
    keys, values = entries(8)
    cache = KakeyaLatticeCache(variant="e8", q_range=38, num_hidden_layers=2, head_dim=16, device="cpu")
    large = (keys / keys.abs().amax() * 6e4).half()
    stored, _ = cache.update(large, values.half(), 0)
    bad = int((~stored.isfinite()).sum())
    still(bad > 0, f"{bad} of {stored.numel()} numbers of keys up to 6e4 in float16 are not finite", "all finite")


def test_no_byte_is_saved() -> None:
    """Entries are stored in the model's dtype after quantisation, as the README says."""
    keys, values = entries(64)
    cache = KakeyaLatticeCache(variant="e8", q_range=38, num_hidden_layers=2, head_dim=16, device="cpu")
    stored, _ = cache.update(keys.half(), values.half(), 0)
    assert stored.dtype == torch.float16
