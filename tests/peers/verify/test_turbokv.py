"""turbokv 0.1.0: ``TurboQuantCache(model.config, nbits=...)``, a ``QuantizedLayer`` of transformers."""

import torch
from turboquant import TurboQuantCache

from peers.verify.plain import entries, error, llama, still


def test_keys_shrink_with_every_flush() -> None:
    """Everything is quantised again at each flush of the residual, and each time norms shrink."""
    keys, values = entries(2048, dim=128)
    cache = TurboQuantCache(llama(head_dim=128).config, nbits=2, device="cpu", skip_layers=set())
    for start in range(0, 2048, 128):
        stored, _ = cache.update(keys[:, :, start : start + 128], values[:, :, start : start + 128], 1)
    shrunk = float(stored[:, :, 0].norm() / keys[:, :, 0].norm())
    still(shrunk < 0.6, f"norm of token 0 times {shrunk:.2f} after 2,048 tokens at 2 bits", "within .12 of 1, once")


def test_the_error_grows_with_every_flush() -> None:
    """The error of the first tokens grows with the tokens that follow."""
    keys, values = entries(2048, dim=128)
    cache = TurboQuantCache(llama(head_dim=128).config, nbits=4, device="cpu", skip_layers=set())
    errors = []
    for start in range(0, 2048, 128):
        stored, _ = cache.update(keys[:, :, start : start + 128], values[:, :, start : start + 128], 1)
        errors.append(error(stored[:, :, :128], keys[:, :, :128]))
    numbers = f"error of the first 128 tokens {errors[1]:.3f} after 256 tokens, {errors[-1]:.3f} after 2,048"
    still(errors[-1] > 1.3 * errors[1], numbers, "written once, the same")


def test_the_default_layer_is_not_quantised() -> None:
    """Layer 0 is left out by default."""
    keys, values = entries(256, dim=128)
    cache = TurboQuantCache(llama(head_dim=128).config, nbits=4, device="cpu")
    cache.update(keys, values, 0)
    stored, _ = cache.update(keys[:, :, :1], values[:, :, :1], 0)
    assert torch.equal(stored[:, :, :256], keys)
